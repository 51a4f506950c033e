"""The rules that choose which rollouts make the group. Pure.

    first_above     Dynamic Group Scaling (Sync-R1, sec. 3.3): the first G previews above a threshold (`screen`). The
                    paper draws until G pass and names no cap. Here drawing stops at a cap, and `top_up` completes the
                    group with the best rejected previews
    best_and_worst  the best and the worst of N previews
    extremes        of N finished images, those whose rewards are furthest from the mean of all

Previews are identified by their index in draw order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class ScreenResult:
    """Which previews a screen keeps.

    indices     the kept previews, in draw order, at most the group's size
    passed      previews that pass, including those beyond the group's size
    drawn       all previews drawn, including rejected and unscored ones
    num_scored  previews with a score; without a threshold, all
    is_full     whether `indices` is a full group
    topped_up   those of `indices` that did not pass; empty unless `top_up` added them at the cap
    """

    indices: tuple[int, ...]
    passed: int
    drawn: int
    num_scored: int
    is_full: bool
    topped_up: tuple[int, ...] = ()

    @property
    def pass_rate(self) -> float | None:
        """The share of scored previews that pass; None when none is scored."""
        return self.passed / self.num_scored if self.num_scored else None


def screen(scores: Sequence[float | None], threshold: float | None, group_size: int) -> ScreenResult:
    """Keep the first `group_size` previews whose score is above `threshold`.

    `scores` are in draw order, None where a score is missing. A missing score does not pass a threshold. With
    `threshold` None every preview passes, scored or not, so the first `group_size` drawn are kept.
    Raises ValueError for a `group_size` below 1 and for a score that is NaN or infinite.
    """
    _check(scores, group_size)
    if threshold is None:
        passing = list(range(len(scores)))
        num_scored = len(scores)
    else:
        passing = [index for index, score in enumerate(scores) if score is not None and score > threshold]
        num_scored = sum(score is not None for score in scores)
    return ScreenResult(tuple(passing[:group_size]), len(passing), len(scores), num_scored, len(passing) >= group_size)


def top_up(kept: ScreenResult, scores: Sequence[float | None], group_size: int) -> ScreenResult:
    """Complete `kept` to `group_size` previews at the cap: best rejected score first, ties in draw order.

    Previews without a score come last, in draw order. `topped_up` lists what was added; `passed`, and so the pass
    rate, is unchanged. With fewer previews drawn than `group_size`, all are kept and `is_full` stays False.
    """
    _check(scores, group_size)
    if len(scores) != kept.drawn:
        raise ValueError(f"{len(scores)} scores, but the screen saw {kept.drawn} previews; give the same scores")
    if kept.is_full:
        return kept
    rejected = [index for index in range(len(scores)) if index not in set(kept.indices)]
    rejected.sort(key=lambda index: _rank(scores[index]))  # stable: ties stay in draw order
    added = sorted(rejected[: group_size - len(kept.indices)])
    indices = sorted([*kept.indices, *added])
    return replace(kept, indices=tuple(indices), is_full=len(indices) >= group_size, topped_up=tuple(added))


def best_and_worst(scores: Sequence[float | None], group_size: int) -> ScreenResult:
    """Keep the best ceil(G/2) and the worst floor(G/2) of the scored previews; of equal scores the first is better.

    With fewer scores than `group_size`, all scored previews are kept and the first without a score top up the group.
    Raises ValueError for a `group_size` below 1 and for a score that is NaN or infinite.
    """
    _check(scores, group_size)
    ranked = sorted((i for i, score in enumerate(scores) if score is not None), key=lambda i: _rank(scores[i]))
    best = (group_size + 1) // 2
    kept = ranked if len(ranked) <= group_size else ranked[:best] + ranked[len(ranked) - (group_size - best) :]
    unscored = [i for i, score in enumerate(scores) if score is None]
    added = unscored[: group_size - len(kept)]
    indices = tuple(sorted([*kept, *added]))
    return ScreenResult(indices, len(kept), len(scores), len(ranked), len(indices) >= group_size, tuple(added))


def extremes(advantages: Sequence[float], count: int) -> tuple[int, ...]:
    """Return the places of the `count` advantages furthest from 0, in order; of equal ones the first.

    With fewer than `count` all are returned. Raises ValueError for a `count` below 1.
    """
    if count < 1:
        raise ValueError(f"the number of extremes is {count}; give 1 or more")
    return tuple(sorted(sorted(range(len(advantages)), key=lambda place: -abs(advantages[place]))[:count]))


def _rank(score: float | None) -> float:
    return math.inf if score is None else -score


def _check(scores: Sequence[float | None], group_size: int) -> None:
    if group_size < 1:
        raise ValueError(f"group_size is {group_size}; give 1 or more")
    for index, score in enumerate(scores):
        if score is not None and not math.isfinite(score):
            raise ValueError(f"score {index} is {score}; give None for a missing score")
