"""Reflection: does the model know whether its image was right? UniRL-Zero, sec. 5.5 (scenario 6).

    R = [the Yes/No is right] + [the reply is in the format]

Where the paper is silent: the format is `<answer>..</answer>` at the reply's start, as in its public format reward,
with something in it; the Yes/No is the first such word in that element or, without an element, in the whole reply; a
reply with neither word there is wrong. The third term, GenEval of the corrected image, is a weight of the ensemble.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from services.scorers.base import ScorerSpec
from services.scorers.shared.replies import first_yes_or_no, right_yes_or_no
from services.settings_types import ScorerSettings
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import InvalidItem
from synod.replies import answer_parts


class ReflectionSettings(ScorerSettings):
    """A verdict on the own image (UniRL-Zero, sec. 5.5): whether it is right and in the format."""

    kind: Literal["reflection"]


def spec(name: str, settings: ReflectionSettings) -> ScorerSpec:
    summary = "a verdict on the own image: right, and in the format"
    return ScorerSpec(name, ("reasoning",), 0.0, 2.0, "UniRL-Zero, sec. 5.5", summary)


def build(name: str, settings: ReflectionSettings) -> Reflection:
    return Reflection(name, settings)


class Reflection:
    def __init__(self, name: str, settings: ReflectionSettings) -> None:
        self.spec = spec(name, settings)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [self._one(item) for item in items]

    def _one(self, item: ScoreItem) -> Outcome:
        assert item.reasoning is not None
        try:
            right = right_yes_or_no(item.reasoning)
        except InvalidItem as error:
            return ScoreFailure.of(error)
        reply = item.reasoning.text
        answer, _ = answer_parts(reply)
        said = first_yes_or_no(reply if answer is None else answer)
        correct, formatted = float(said == right), float(bool(answer))
        return Score(correct + formatted, {"right": right, "said": said, "correctness": correct, "format": formatted})
