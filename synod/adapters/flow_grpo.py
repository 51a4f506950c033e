"""flow_grpo: `multi_score`, the reward function of its training scripts.

    from synod.adapters import flow_grpo as synod_rewards
    reward_fn = synod_rewards.multi_score(accelerator.device, config.reward_fn, url="http://127.0.0.1:8000")

`config.reward_fn` is {scorer: weight}; `avg` is the sum of weight x value, as in flow_grpo. flow_grpo cannot represent
a missing score, so it is raised. With on_error="mask" it is None, and the list `valid` marks complete items; an
unmodified script fails on None rather than train on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from synod.adapters.connection import OnAllFailed, check_not_all_failed
from synod.adapters.items import image_data_list, item_of, to_builtin
from synod.client import SynodClient
from synod.contracts import ScoreItem, ScoreRequest
from synod.errors import InvalidRequest
from synod.scoring import geneval
from synod.values import OnError, Values, values_of

Scores = dict[str, list[Any]]


def multi_score(
    device: object,
    score_dict: Mapping[str, float],
    *,
    url: str,
    on_error: OnError = "raise",
    on_all_failed: OnAllFailed = "raise",
    **options: Any,
) -> MultiScore:
    """Return the reward function of `score_dict`, {scorer: finite weight}. `device` is ignored.

    With on_error="mask", a scorer that failed for every image is still raised, unless a failure is retryable or
    on_all_failed="mask". `options` are SynodClient's. Raises ValueError for no scorer or a weight that is not finite.
    """
    if not score_dict or not all(map(math.isfinite, score_dict.values())):
        raise ValueError(f"score_dict is {dict(score_dict)}; give {{scorer: finite weight}} with at least one scorer")
    return MultiScore(SynodClient(url, **{"by_digest": True, **options}), score_dict, on_error, on_all_failed)


class MultiScore:
    """Score images for flow_grpo; thread-safe."""

    def __init__(
        self, client: SynodClient, weights: Mapping[str, float], on_error: OnError, on_all_failed: OnAllFailed
    ) -> None:
        self._client, self._weights = client, dict(weights)
        self._on_error, self._on_all_failed = on_error, on_all_failed

    def __call__(
        self,
        images: Sequence[Any],
        prompts: Sequence[str],
        metadata: Any,
        ref_images: Sequence[Any] | None = None,
        only_strict: bool | None = None,
    ) -> tuple[Scores, dict[str, Any]]:
        """Return lists by scorer and "avg", one entry per image, and {"missing": ..} if a score is missing.

        `images` are a list, torch [N 3 H W] or numpy [N H W 3]; `only_strict` is ignored. Raises SynodError, BadImage,
        InvalidRequest.
        """
        items = items_of(images, prompts, metadata, ref_images)
        response = self._client.score(ScoreRequest(items, tuple(self._weights)))
        values = values_of(response, self._on_error)
        if self._on_all_failed == "raise":
            check_not_all_failed(values)
        return score_lists(values, self._weights, self._on_error), {"missing": values.missing} if values.missing else {}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def items_of(
    images: Sequence[Any], prompts: Sequence[str], metadata: Any, ref_images: Sequence[Any] | None
) -> tuple[ScoreItem, ...]:
    """Build items. `metadata` is a mapping per prompt, or one for all: GenEval's fields or ScoreItem's."""
    contents = image_data_list(images)
    rows = [metadata] * len(contents) if isinstance(metadata, Mapping) else list(metadata)
    if not len(contents) == len(prompts) == len(rows):
        raise InvalidRequest(f"{len(contents)} images, {len(prompts)} prompts, {len(rows)} metadata; give one of each")
    if ref_images is None:
        return tuple(item_of(*one) for one in zip(contents, prompts, map(columns_of, rows), strict=True))
    references = image_data_list(ref_images)
    if len(references) != len(contents):
        raise InvalidRequest(f"{len(references)} ref_images for {len(contents)} images; give one each")
    columns = [{**columns_of(row), "references": [one]} for row, one in zip(rows, references, strict=True)]
    return tuple(item_of(*one) for one in zip(contents, prompts, columns, strict=True))


def columns_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row of metadata as an item's fields, also if it is a line of GenEval or GenEval 2.

    A clause that no rule set decides gives an item without `geneval`, as in `synod score`.
    """
    if row.get("geneval") is not None or not geneval.is_metadata(row):
        return row
    return geneval.item_fields(
        {**row, **{name: to_builtin(row[name]) for name in (*geneval.METADATA, "vqa_list") if name in row}}
    )


def score_lists(values: Values, weights: Mapping[str, float], on_error: OnError) -> Scores:
    """Return each scorer's values, their weighted sums "avg" and, with "mask", "valid": whether all exist."""
    scores: Scores = {name: list(values.scores[name]) for name in weights}
    valid = [None not in row for row in zip(*scores.values(), strict=True)]
    rows = zip(*scores.values(), strict=True)
    average = [
        sum(weight * value for weight, value in zip(weights.values(), row, strict=True)) if whole else None
        for whole, row in zip(valid, rows, strict=True)
    ]
    return {**scores, "avg": average, **({"valid": valid} if on_error == "mask" else {})}
