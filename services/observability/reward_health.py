"""Compute reward health: whether a reward is saturated, flat within groups, drifting or failing. No I/O.

Outcomes become sums, which add up over requests and processes. Values enter in units of the scorer's range,
u = (value - low) / (high - low) clipped to [0, 1], so that no sum decreases, as counters require. A policy cannot learn
from a reward that is saturated or flat within groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from synod.contracts import Outcome, Score, ScoreItem

SATURATED: Final = 0.01  # of the range, from either end
FLAT: Final = 1e-9  # of the range: a group whose values differ by at most this has no spread
BASELINE: Final = 1000  # the scores that drift is measured from


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums >= 0. `first_*` cover the first BASELINE scores of each process; a group counts if it has two scores."""

    scores: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    saturated: float = 0.0
    failed: float = 0.0
    groups: float = 0.0
    flat_groups: float = 0.0
    first_scores: float = 0.0
    first_total: float = 0.0
    first_squares: float = 0.0


@dataclass(frozen=True, slots=True)
class Health:
    """The health of a scorer's rewards since the service started. None: not known yet.

    `mean`, `std` (population) are in the scorer's units; `saturation`, `zero_spread` (of groups) and `error_share`
    (of outcomes) are in [0, 1]; `drift` is the mean after the baseline minus its mean, in its standard deviations.
    """

    mean: float | None
    std: float | None
    saturation: float | None
    zero_spread: float | None
    error_share: float | None
    drift: float | None


def sums_of(
    outcomes: Sequence[Outcome], groups: Iterable[Sequence[int]], low: float, high: float, seen: float = 0.0
) -> Sums:
    """Return the sums of one request and scorer. `groups` are indexes into `outcomes`.

    `seen` is the number of earlier scores in this process. With an empty or infinite range, only counts are above 0.
    """
    unit = {i: _unit(outcome.value, low, high) for i, outcome in enumerate(outcomes) if isinstance(outcome, Score)}
    spreads = [max(us) - min(us) for group in groups if len(us := [unit[i] for i in group if i in unit]) > 1]
    us = list(unit.values())
    first = us[: max(0, BASELINE - int(seen))]
    return Sums(
        scores=len(us),
        total=math.fsum(us),
        squares=math.fsum(u * u for u in us),
        saturated=sum(u <= SATURATED or u >= 1 - SATURATED for u in us),
        failed=len(outcomes) - len(us),
        groups=len(spreads),
        flat_groups=sum(spread <= FLAT for spread in spreads),
        first_scores=len(first),
        first_total=math.fsum(first),
        first_squares=math.fsum(u * u for u in first),
    )


def groups_of(items: Sequence[ScoreItem]) -> list[list[int]]:
    """Return the indexes of items by prompt: the gateway recognises a group of rollouts by its prompt."""
    by_prompt: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        if item.prompt is not None:
            by_prompt.setdefault(item.prompt, []).append(i)
    return list(by_prompt.values())


def health_of(sums: Sums, low: float, high: float) -> Health:
    """Return the health that the sums give."""
    width = high - low
    mean, std = _moments(sums.scores, sums.total, sums.squares)
    first_mean, first_std = _moments(sums.first_scores, sums.first_total, sums.first_squares)
    later_mean, _ = _moments(sums.scores - sums.first_scores, sums.total - sums.first_total, 0.0)
    drift = None
    if later_mean is not None and first_mean is not None and first_std:
        drift = (later_mean - first_mean) / first_std
    return Health(
        mean=None if mean is None else low + width * mean,
        std=None if std is None else width * std,
        saturation=_share(sums.saturated, sums.scores),
        zero_spread=_share(sums.flat_groups, sums.groups),
        error_share=_share(sums.failed, sums.scores + sums.failed),
        drift=drift,
    )


def healths(found: Mapping[str, Sums], ranges: Mapping[str, tuple[float, float]]) -> dict[str, Health]:
    """Return the health of each scorer whose range is known."""
    return {name: health_of(sums, *ranges[name]) for name, sums in found.items() if name in ranges}


def _unit(value: float, low: float, high: float) -> float:
    width = high - low
    return min(1.0, max(0.0, (value - low) / width)) if 0 < width < math.inf else 0.0


def _moments(count: float, total: float, squares: float) -> tuple[float | None, float | None]:
    if count < 1:
        return None, None
    mean = total / count
    return mean, math.sqrt(max(0.0, squares / count - mean * mean))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
