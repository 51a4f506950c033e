"""What outcomes hold, responses of streamed parts, and waiting for a condition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from synod.contracts import ItemResult, Outcome, Part, Rewards, Score, ScoredItem, ScoreResponse


def value(outcome: Outcome | None) -> float | str | None:
    """Return the value of a score, the code of a failure, None for None."""
    return outcome.value if isinstance(outcome, Score) else outcome and outcome.code


def values(outcomes: Iterable[Outcome]) -> list[float | str | None]:
    """Return the value or the code of each outcome."""
    return [value(outcome) for outcome in outcomes]


def merge_parts(parts: Iterable[Part], items: int) -> ScoreResponse:
    """Build the response from all parts of one complete answer to `items` items."""
    scores: list[dict[str, Outcome]] = [{} for _ in range(items)]
    rewards: tuple[Outcome | None, ...] = (None,) * items
    request_id = ""
    for part in parts:
        request_id = part.request_id
        if isinstance(part, ScoredItem):
            scores[part.index][part.scorer] = part.outcome
        elif isinstance(part, Rewards):
            rewards = part.rewards
    return ScoreResponse(tuple(map(ItemResult, scores, rewards)), request_id)


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds, for at most 20 seconds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)
