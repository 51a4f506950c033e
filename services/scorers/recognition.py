"""Recognition: is the yes/no answer right? UniCTokens: the right word is a substring of the lowered answer, 1 or 0.

The "weight" of its tables is the mean of the recalls on positives and negatives: `synod.scoring.recall`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from services.scorers.base import ScorerSpec
from services.scorers.shared.replies import right_yes_or_no
from services.settings_types import ScorerSettings
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import InvalidItem


class RecognitionSettings(ScorerSettings):
    """Whether a yes/no reply holds the right word (UniCTokens)."""

    kind: Literal["recognition"]


def spec(name: str, settings: RecognitionSettings) -> ScorerSpec:
    summary = "a yes/no reply against the right one, by substring"
    return ScorerSpec(name, ("reasoning",), 0.0, 1.0, "UniCTokens (recognition)", summary)


def build(name: str, settings: RecognitionSettings) -> Recognition:
    return Recognition(name, settings)


class Recognition:
    def __init__(self, name: str, settings: RecognitionSettings) -> None:
        self.spec = spec(name, settings)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [_one(item) for item in items]


def _one(item: ScoreItem) -> Outcome:
    assert item.reasoning is not None
    try:
        right = right_yes_or_no(item.reasoning)
    except InvalidItem as error:
        return ScoreFailure.of(error)
    reply = item.reasoning.text.lower()
    said = [word for word in ("yes", "no") if word in reply]
    return Score(float(right in said), {"right": right, "said": said})
