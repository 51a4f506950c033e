"""verl and verl-omni: a custom reward function.

    reward.custom_reward_function.path=pkg://synod.adapters.verl
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.url=http://127.0.0.1:8000
    +reward.custom_reward_function.reward_kwargs.scorer=ber

verl asks for one sample at a time and awaits many at once; the service makes batches of them. verl has no place for a
missing score, so one that is missing is raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from synod.adapters.connection import Connection, asked, numbers
from synod.adapters.items import image_of, item_of, of_json, plain, prompt_of
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
    """{"score": finite number} of one sample, by one scorer or one ensemble; verl's own further arguments are ignored.

    verl gives `solution_str`, verl-omni `solution_image` (uint8 [3 H W]). Raises SynodError for a score that is
    missing or a service that is away, BadImage and InvalidRequest for a sample that cannot be sent, ValueError unless
    one of `scorer` and `ensemble` is given.
    """
    request = asked(scorer, ensemble)
    item = item_of_sample(solution_str, solution_image, ground_truth, extra_info or {})
    values = await connection(url, timeout_s).values(replace(request, items=(item,)), "raise")
    (score,) = numbers(values, request)
    assert score is not None, "a missing score was raised"
    return {"score": score}


def item_of_sample(text: str | None, image: Any, ground_truth: Any, extra: Mapping[str, Any]) -> ScoreItem:
    """The prompt is `extra_info.prompt`, or else a `ground_truth` that is text, the former a conversation too; a
    `ground_truth` that is an object, or the JSON text of one, gives fields as `extra_info` does; `solution_str` is the
    text of `reasoning`, where that has none. Raises BadImage, InvalidRequest."""
    if extra.get("prompt") is None:
        ground_truth = of_json(ground_truth, "ground_truth")
    columns = {**(ground_truth if isinstance(ground_truth, Mapping) else {}), **extra}
    prompt = prompt_of(columns.get("prompt"), "extra_info.prompt")
    if prompt is None and isinstance(ground_truth, str):
        prompt = ground_truth or None
    reasoning = of_json(plain(columns.get("reasoning")), "reasoning")
    if isinstance(reasoning, Mapping) and reasoning.get("text") is None:
        columns["reasoning"] = {**reasoning, "text": text}
    return item_of(image_of(columns) if image is None else image, prompt, columns)


@lru_cache
def connection(url: str, timeout_s: float) -> Connection:
    """This process's connection to a service."""
    return Connection(url, timeout_s=timeout_s)
