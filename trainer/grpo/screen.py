"""The screen of Dynamic Group Scaling (Sync-R1, sec. 3.3): of the previews drawn so far, which make the group. Pure.

A preview is known by its place in the draw order, 0 first. The paper draws until G previews pass; it names no cap. Here
drawing stops at a cap, and `fill` completes the group with the best of those rejected and says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Kept:
    """What a screen keeps of `drawn` previews.

    indices  the previews kept, in draw order, at most the group's size
    passed   previews that pass, those beyond the group's size included
    drawn    all previews drawn, rejected and unscored ones included
    judged   previews that could pass or fail: those with a score; without a threshold, all
    enough   `indices` is a full group
    filled   those of `indices` that did not pass, in draw order: empty unless `fill` added them at the cap
    """

    indices: tuple[int, ...]
    passed: int
    drawn: int
    judged: int
    enough: bool
    filled: tuple[int, ...] = ()

    @property
    def pass_rate(self) -> float | None:
        """passed / judged, which counts every preview drawn that has a score; None when there is none to count."""
        return self.passed / self.judged if self.judged else None


def screen(scores: Sequence[float | None], threshold: float | None, group: int) -> Kept:
    """The first `group` previews whose score is above `threshold`. `scores` are in draw order, None where one was lost.

    A lost score never passes a threshold: it is neither good nor bad. Without a threshold nothing is asked of a score,
    so every preview passes, and the first `group` drawn are kept as if there were no screen. ValueError: `group` below
    1, a score that is NaN or infinite.
    """
    _check(scores, group)
    if threshold is None:
        passing = list(range(len(scores)))
        judged = len(scores)
    else:
        passing = [index for index, score in enumerate(scores) if score is not None and score > threshold]
        judged = sum(score is not None for score in scores)
    return Kept(tuple(passing[:group]), len(passing), len(scores), judged, len(passing) >= group)


def fill(kept: Kept, scores: Sequence[float | None], group: int) -> Kept:
    """`kept`, completed at the cap to `group` previews: the best rejected scores first, equal ones in draw order.

    Previews with a lost score come last, in draw order: nothing speaks for them, but their finished images are
    rewarded as any other's. What was added is in `filled`; `passed`, and so the pass rate, stays as it was. With fewer
    previews drawn than `group`, all are kept and `enough` stays False.
    """
    _check(scores, group)
    if len(scores) != kept.drawn:
        raise ValueError(f"{len(scores)} scores, but the screen saw {kept.drawn} previews; give the same scores")
    if kept.enough:
        return kept
    chosen = set(kept.indices)
    rejected = [index for index in range(len(scores)) if index not in chosen]
    rejected.sort(key=lambda index: _rank(scores[index]))  # stable: equal scores stay in draw order
    added = sorted(rejected[: group - len(chosen)])
    indices = sorted([*kept.indices, *added])
    return replace(kept, indices=tuple(indices), enough=len(indices) >= group, filled=tuple(added))


def _rank(score: float | None) -> float:
    return math.inf if score is None else -score


def _check(scores: Sequence[float | None], group: int) -> None:
    if group < 1:
        raise ValueError(f"the group is {group}; give 1 rollout or more")
    for index, score in enumerate(scores):
        if score is not None and not math.isfinite(score):
            raise ValueError(f"score {index} is {score}; give None for a score that was not measured")
