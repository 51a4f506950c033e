"""What outcomes hold, and waiting for a condition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from synod.contracts import Outcome, Score


def value(outcome: Outcome | None) -> float | str | None:
    """Return the value of a score, the code of a failure, None for None."""
    return outcome.value if isinstance(outcome, Score) else outcome and outcome.code


def values(outcomes: Iterable[Outcome]) -> list[float | str | None]:
    """Return the value or the code of each outcome."""
    return [value(outcome) for outcome in outcomes]


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds, for at most 20 seconds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)
