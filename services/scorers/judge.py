"""Judge: a vision-language model grades the image by a rubric of the settings, in [low, high]."""

from __future__ import annotations

from services.scorer_settings import JudgeSettings
from services.scorers.base import Need, Scorer, ScorerSpec
from services.scorers.verdicts import Grader


def spec(name: str, settings: JudgeSettings) -> ScorerSpec:
    needs: tuple[Need, ...] = ("image", "prompt") if "{prompt}" in settings.rubric else ("image",)
    return ScorerSpec(name, needs, settings.low, settings.high, "the settings' rubric", "a model's grade by a rubric")


def build(name: str, settings: JudgeSettings) -> Scorer:
    from services.models.judge import load

    return Grader(spec(name, settings), load(settings), settings.rubric)
