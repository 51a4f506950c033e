"""Compare one scorer's outcomes before and after, item by item. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synod.contracts import Origin, Outcome, Score

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pair:
    """One item's outcome before and after; `label` names the item."""

    label: str
    before: Outcome
    after: Outcome


@dataclass(frozen=True, slots=True)
class Comparison:
    """`n` items have both values; `changed` of them differ by more than the tolerance.

    `max_difference` is over all n. The correlations are in -1..1; None where n < 2 or a side is constant.
    `status_changed` holds the items that were scored before and failed now, or the reverse, or failed with another
    code. Origins are distinct, possibly with None.
    """

    n: int
    changed: int
    max_difference: float | None
    pearson: float | None
    spearman: float | None
    status_changed: tuple[Pair, ...]
    origins_before: tuple[Origin | None, ...]
    origins_after: tuple[Origin | None, ...]


def compare(pairs: Sequence[Pair], tolerance: float = 0.0) -> Comparison:
    """Compare pairs; `tolerance` >= 0 is in the scorer's units."""
    both = [
        (p.before.value, p.after.value) for p in pairs if isinstance(p.before, Score) and isinstance(p.after, Score)
    ]
    before, after = (np.array(side, float) for side in (zip(*both, strict=True) if both else ((), ())))
    difference = np.abs(after - before)
    return Comparison(
        n=len(both),
        changed=int((difference > tolerance).sum()),
        max_difference=float(difference.max()) if both else None,
        pearson=correlation(before, after),
        spearman=correlation(ranks(before), ranks(after)),
        status_changed=tuple(p for p in pairs if status(p.before) != status(p.after)),
        origins_before=_origins([p.before for p in pairs]),
        origins_after=_origins([p.after for p in pairs]),
    )


def status(outcome: Outcome) -> str:
    """Return "ok", or the failure's code."""
    return "ok" if isinstance(outcome, Score) else outcome.code


def correlation(x: Floats, y: Floats) -> float | None:
    """Return Pearson's correlation; None for fewer than two values or a constant side."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    dx, dy = x - x.mean(), y - y.mean()
    dx, dy = dx / np.abs(dx).max(), dy / np.abs(dy).max()  # squares of small or huge values stay in range
    return float(np.clip(dx @ dy / np.sqrt((dx @ dx) * (dy @ dy)), -1.0, 1.0))


def ranks(values: Floats) -> Floats:
    """Return ranks 1 .. n, from the smallest value; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: Floats = last - (counts - 1) / 2
    return mean_rank[place]


def _origins(outcomes: Sequence[Outcome]) -> tuple[Origin | None, ...]:
    return tuple(dict.fromkeys(one.origin for one in outcomes if isinstance(one, Score)))
