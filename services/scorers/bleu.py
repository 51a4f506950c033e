"""BLEU on characters, as UniCTokens measures VQA, QA and reasoning answers (Papineni et al. 2002).

    BLEU = min(1, e^(1 - r/c)) * p_1^0.7 * p_2^0.3

p_n: the clipped precision of the reply's character n-grams against the right answers, 0.1 / count where none matches
(nltk's smoothing method 1); c: the reply's length; r: the length of the right answer that is nearest to it, of equals
the shorter. Equal to nltk's sentence_bleu on the strings themselves: nothing is lowered or stripped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

from services.scorers.base import ScorerSpec
from services.scorers.shared.replies import right_answers
from services.settings_types import ScorerSettings
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import InvalidItem

WEIGHTS: Final = (0.7, 0.3)
_EPSILON: Final = 0.1


class BleuSettings(ScorerSettings):
    """BLEU on characters against the right answers (UniCTokens)."""

    kind: Literal["bleu"]


def spec(name: str, settings: BleuSettings) -> ScorerSpec:
    summary = "the reply's characters against the right answers"
    return ScorerSpec(name, ("reasoning",), 0.0, 1.0, "UniCTokens (BLEU)", summary)


def build(name: str, settings: BleuSettings) -> Bleu:
    return Bleu(name, settings)


class Bleu:
    def __init__(self, name: str, settings: BleuSettings) -> None:
        self.spec = spec(name, settings)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [self._one(item) for item in items]

    def _one(self, item: ScoreItem) -> Outcome:
        assert item.reasoning is not None
        try:
            answers = right_answers(item.reasoning)
        except InvalidItem as error:
            return ScoreFailure.of(error)
        values = [bleu((answer,), item.reasoning.text) for answer in answers]
        best = max(range(len(answers)), key=values.__getitem__)
        return Score(bleu(answers, item.reasoning.text), {"nearest": answers[best], "references": len(answers)})


def bleu(references: Sequence[str], reply: str) -> float:
    """Return BLEU in [0, 1]; 0 for a reply that shares no character with any reference."""
    first, *_ = precisions = [_precision(references, reply, n) for n in range(1, len(WEIGHTS) + 1)]
    if not first[0]:
        return 0.0
    logs = (weight * math.log((hits or _EPSILON) / of) for weight, (hits, of) in zip(WEIGHTS, precisions, strict=True))
    nearest = min((len(reference) for reference in references), key=lambda size: (abs(size - len(reply)), size))
    return min(1.0, math.exp(1 - nearest / len(reply))) * math.exp(math.fsum(logs))


def _precision(references: Sequence[str], reply: str, n: int) -> tuple[int, int]:
    """Return the clipped count of the reply's n-grams that a reference has, and the count of all, at least 1."""
    counts = _ngrams(reply, n)
    most: Counter[str] = Counter()
    for reference in references:
        most |= _ngrams(reference, n)
    return (counts & most).total(), max(1, counts.total())


def _ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))
