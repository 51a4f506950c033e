"""Quality: how good is the image itself? The term R_quality(x) of UniRL-Zero, eq. 5, graded by a judge.

The paper says only that it assesses image quality, neither how nor in which range, and its public code has no such
term. Here it is one grade in [0, 1] of the image alone, by RUBRIC.
"""

from __future__ import annotations

from typing import Final, Literal

from services.models.settings import JudgeEndpoint
from services.scorers.base import Scorer, ScorerSpec
from services.scorers.shared.verdicts import Grader

RUBRIC: Final = (
    "Grade from 0 to 1 the quality of the picture as such, whatever it shows: sharpness, light, colours, "
    "composition, and faults such as blur, noise, broken anatomy or garbled text. 1: flawless, 0: unusable."
)


class QualitySettings(JudgeEndpoint):
    """A judge's grade of the image alone, in [0, 1] (UniRL-Zero, eq. 5)."""

    kind: Literal["quality"]


def spec(name: str, settings: QualitySettings) -> ScorerSpec:
    return ScorerSpec(name, ("image",), 0.0, 1.0, "UniRL-Zero, eq. 5", "a model's grade of the image's quality")


def build(name: str, settings: QualitySettings) -> Scorer:
    from services.models.judge import load

    return Grader(spec(name, settings), load(settings), RUBRIC)
