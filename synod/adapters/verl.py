"""verl and verl-omni: a custom reward function.

    reward.custom_reward_function.path=pkg://synod.adapters.verl
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.url=http://127.0.0.1:8000
    +reward.custom_reward_function.reward_kwargs.scorer=ber

verl scores one sample per call and awaits many calls at once; the service batches them. verl cannot represent a missing
score, so it is raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from synod.adapters.connection import Connection, request_for, values_per_item
from synod.adapters.items import image_of, item_of, parse_json_object, prompt_of, to_builtin
from synod.contracts import ScoreItem


async def compute_score(
    data_source: str,
    solution_str: str | None = None,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    solution_image: Any = None,
    url: str,
    scorer: str | None = None,
    ensemble: str | None = None,
    timeout_s: float = 60.0,
    **others: Any,
) -> dict[str, float]:
    """Return {"score": finite number} for one sample, by one scorer or one ensemble.

    verl passes `solution_str`, verl-omni `solution_image` (uint8 [3 H W]); other arguments are ignored. Raises
    SynodError for a missing score or an unavailable service, BadImage and InvalidRequest for a sample that cannot be
    sent, ValueError unless exactly one of `scorer` and `ensemble` is given.
    """
    request = request_for(scorer, ensemble)
    item = item_of_sample(solution_str, solution_image, ground_truth, extra_info or {})
    values = await connection(url, timeout_s).values(replace(request, items=(item,)), "raise")
    (score,) = values_per_item(values, request)
    assert score is not None, "values() raises for a missing score"
    return {"score": score}


def item_of_sample(text: str | None, image: Any, ground_truth: Any, extra: Mapping[str, Any]) -> ScoreItem:
    """Build an item from verl's arguments.

    The prompt is `extra_info.prompt` (text or a conversation), or else a `ground_truth` that is text. A `ground_truth`
    that is an object, or the JSON text of one, gives fields as `extra_info` does. `solution_str` becomes the text of
    `reasoning` if that has none. Raises BadImage, InvalidRequest.
    """
    if extra.get("prompt") is None:
        ground_truth = parse_json_object(ground_truth, "ground_truth")
    columns = {**(ground_truth if isinstance(ground_truth, Mapping) else {}), **extra}
    prompt = prompt_of(columns.get("prompt"), "extra_info.prompt")
    if prompt is None and isinstance(ground_truth, str):
        prompt = ground_truth or None
    reasoning = parse_json_object(to_builtin(columns.get("reasoning")), "reasoning")
    if isinstance(reasoning, Mapping) and reasoning.get("text") is None:
        columns["reasoning"] = {**reasoning, "text": text}
    return item_of(image_of(columns) if image is None else image, prompt, columns)


@lru_cache
def connection(url: str, timeout_s: float) -> Connection:
    """Return this process's connection to a service."""
    return Connection(url, timeout_s=timeout_s)
