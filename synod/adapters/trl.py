"""trl: an async reward function for `GRPOTrainer(reward_funcs=[..])`.

    trainer = GRPOTrainer(model, reward_funcs=[reward_function("http://127.0.0.1:8000", "ber")], ...)

trl calls it with `prompts`, `completions` and the dataset's columns, one entry per completion, and expects a number or
None for each. trl masks a completion for which every reward function returned None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from synod.adapters.connection import Connection, OnAllFailed, check_not_all_failed, request_for, values_per_item
from synod.adapters.items import FIELDS, image_in, image_of, item_of, parse_json_object, prompt_of, text_of, to_builtin
from synod.contracts import ScoreItem
from synod.values import OnError

COLUMNS: Final[tuple[str, ...]] = ("image", "images", "references", *FIELDS)  # of the dataset, read into items


def reward_function(
    url: str,
    scorer: str | None = None,
    *,
    ensemble: str | None = None,
    on_error: OnError = "mask",
    on_all_failed: OnAllFailed = "raise",
    **options: Any,
) -> RewardFunction:
    """Return the reward function of one scorer or one ensemble.

    A failed score is None, or raised with on_error="raise". A batch in which every score failed and none is retryable
    is raised, unless on_all_failed="mask". `options` are AsyncSynodClient's. Raises ValueError unless exactly one of
    `scorer` and `ensemble` is given.
    """
    return RewardFunction(Connection(url, **options), scorer, ensemble, on_error, on_all_failed)


class RewardFunction:
    """Score completions for trl, which shows `__name__` in its logs."""

    def __init__(
        self,
        service: Connection,
        scorer: str | None,
        ensemble: str | None,
        on_error: OnError,
        on_all_failed: OnAllFailed,
    ) -> None:
        self._service, self._request = service, request_for(scorer, ensemble)
        self._on_error, self._on_all_failed = on_error, on_all_failed
        self.__name__ = scorer or ensemble or ""

    async def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one number or None per completion, in order.

        Raises SynodError when the service is unavailable or the request is invalid, BadImage and InvalidRequest for
        columns that cannot be sent.
        """
        rows = [{name: columns[name][i] for name in COLUMNS if name in columns} for i in range(len(completions))]
        items = tuple(map(item_of_row, prompts, completions, rows))
        values = await self._service.values(replace(self._request, items=items), self._on_error)
        if callable(log := columns.get("log_metric")):
            log(f"{self.__name__}/missing_share", len(values.missing) / len(items))
        if self._on_all_failed == "raise":
            check_not_all_failed(values)
        return list(values_per_item(values, self._request))

    async def close(self) -> None:
        """Close the running loop's connections."""
        await self._service.close()


def item_of_row(prompt: Any, completion: Any, row: Mapping[str, Any]) -> ScoreItem:
    """Build an item from a prompt, a completion and the columns of its row.

    The image is the completion's, or else the column `image` or the only one of `images`. The completion's text becomes
    that of `reasoning` if that column has none. Raises BadImage, InvalidRequest.
    """
    image, text = image_in(completion), text_of(completion)
    reasoning = parse_json_object(to_builtin(row.get("reasoning")), "reasoning")
    if isinstance(reasoning, Mapping) and reasoning.get("text") is None:
        row = {**row, "reasoning": {**reasoning, "text": text}}
    return item_of(image_of(row) if image is None else image, prompt_of(prompt), row)
