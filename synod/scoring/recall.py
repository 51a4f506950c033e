"""Compute UniCTokens' recognition "weight" from outcomes of the scorer `recognition`. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from synod.contracts import Outcome, Score

_RIGHT: Final = ("yes", "no")


@dataclass(frozen=True, slots=True)
class Recall:
    """Recalls in [0, 1] on questions with the right answer yes, and no; `failed` counts failed outcomes."""

    positive: float
    negative: float
    failed: int

    @property
    def weight(self) -> float:
        """Return the unweighted mean of both."""
        return (self.positive + self.negative) / 2


def recall(outcomes: Iterable[Outcome]) -> Recall:
    """Compute both recalls. Raises ValueError unless both kinds of question have a score."""
    found = list(outcomes)
    scores = [outcome for outcome in found if isinstance(outcome, Score)]
    values = {right: [s.value for s in scores if s.detail.get("right") == right] for right in _RIGHT}
    empty = [right for right in _RIGHT if not values[right]]
    if empty or sum(map(len, values.values())) != len(scores):
        counts = ", ".join(f"{len(values[right])} of '{right}'" for right in _RIGHT)
        raise ValueError(f"{len(scores)} scores, {counts}: give outcomes of 'recognition' with both right answers")
    positive, negative = (sum(values[right]) / len(values[right]) for right in _RIGHT)
    return Recall(positive, negative, len(found) - len(scores))
