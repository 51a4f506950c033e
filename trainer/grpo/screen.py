"""The screen of Dynamic Group Scaling (Sync-R1, sec. 3.3): of the previews drawn so far, which make the group. Pure.

A preview is known by its place in the draw order, 0 first. The paper draws until G previews pass; it names no cap. Here
drawing stops at a cap, and `top_up` completes the group with the best of those rejected and says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class ScreenResult:
    """What a screen keeps of `drawn` previews.

    indices     the previews kept, in draw order, at most the group's size
    passed      previews that pass, those beyond the group's size included
    drawn       all previews drawn, rejected and unscored ones included
    num_scored  previews that could pass or fail: those with a score; without a threshold, all
    is_full     `indices` is a full group
    topped_up   those of `indices` that did not pass, in draw order: empty unless `top_up` added them at the cap
    """

    indices: tuple[int, ...]
    passed: int
    drawn: int
    num_scored: int
    is_full: bool
    topped_up: tuple[int, ...] = ()

    @property
    def pass_rate(self) -> float | None:
        """passed / num_scored, which counts every preview drawn that has a score; None when there is none to count."""
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
    """Complete `kept` to `group_size` previews at the cap, best rejected score first, ties in draw order.

    Previews without a score come last, in draw order. `topped_up` lists what was added; `passed`, and so the pass
    rate, is unchanged. With fewer previews drawn than `group_size`, all are kept and `is_full` stays False.
    """
    _check(scores, group_size)
    if len(scores) != kept.drawn:
        raise ValueError(f"{len(scores)} scores, but the screen saw {kept.drawn} previews; give the same scores")
    if kept.is_full:
        return kept
    chosen = set(kept.indices)
    rejected = [index for index in range(len(scores)) if index not in chosen]
    rejected.sort(key=lambda index: _rank(scores[index]))  # stable: equal scores stay in draw order
    added = sorted(rejected[: group_size - len(chosen)])
    indices = sorted([*kept.indices, *added])
    return replace(kept, indices=tuple(indices), is_full=len(indices) >= group_size, topped_up=tuple(added))


def _rank(score: float | None) -> float:
    return math.inf if score is None else -score


def _check(scores: Sequence[float | None], group_size: int) -> None:
    if group_size < 1:
        raise ValueError(f"group_size is {group_size}; give 1 rollout or more")
    for index, score in enumerate(scores):
        if score is not None and not math.isfinite(score):
            raise ValueError(f"score {index} is {score}; give None for a score that was not measured")
