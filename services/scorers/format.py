"""Format: does the reply begin with `<answer>..</answer>`? UniRL-Zero's public format reward, 1 or 0.

Deviations: white space may come before it, and an element with nothing in it scores 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from services.scorers.base import ScorerSpec
from services.settings_types import ScorerSettings
from synod.contracts import Outcome, Score, ScoreItem
from synod.replies import answer_parts


class FormatSettings(ScorerSettings):
    """Whether a reply begins with `<answer>..</answer>` (UniRL-Zero)."""

    kind: Literal["format"]


def spec(name: str, settings: FormatSettings) -> ScorerSpec:
    summary = "whether the reply begins with <answer>..</answer>"
    return ScorerSpec(name, ("reasoning",), 0.0, 1.0, "UniRL-Zero (format)", summary)


def build(name: str, settings: FormatSettings) -> Format:
    return Format(name, settings)


class Format:
    def __init__(self, name: str, settings: FormatSettings) -> None:
        self.spec = spec(name, settings)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        replies = [item.reasoning.text for item in items if item.reasoning is not None]
        assert len(replies) == len(items)
        return [Score(float(bool(answer_parts(reply)[0]))) for reply in replies]
