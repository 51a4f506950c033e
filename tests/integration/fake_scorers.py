"""Scorers without models, for a service whose machinery is under test. Workers import this module by name.

Settings of the real kinds stand in for them: the name alone tells which scorer is built.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from services.scorers import registry
from services.scorers.base import Need, Scorer, ScorerSpec
from services.scorers.ber import BerSettings
from services.settings_types import ScorerSettings
from synod.contracts import Outcome, Score, ScoreItem


class Fake:
    """The mean of the image (`bright`) or the number in the prompt (`number`, `slow`), and which process gave it."""

    def __init__(self, name: str, needs: tuple[Need, ...]) -> None:
        self.spec = ScorerSpec(name, needs, 0.0, 1.0, "a test", "a test")

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [Score(self.value(item), {"pid": os.getpid(), "batch": len(items)}) for item in items]

    def value(self, item: ScoreItem) -> float:
        raise NotImplementedError


class Bright(Fake):
    def value(self, item: ScoreItem) -> float:
        return float(item.pixels().mean() / 255)


class Number(Fake):
    """Reads a prompt like '0.25', '0.25 sleep 2' or 'poison'."""

    def value(self, item: ScoreItem) -> float:
        assert item.prompt is not None
        if item.prompt == "poison":
            raise ValueError("poisoned")
        number, _, seconds = item.prompt.partition(" sleep ")
        time.sleep(float(seconds or 0))
        return float(number)


class Counted(Number):
    """Writes a line for each item it measures, when it has, into `file`, which its replicas share."""

    def __init__(self, name: str, file: Path) -> None:
        super().__init__(name, ("image", "prompt"))
        self._file = file

    def value(self, item: ScoreItem) -> float:
        value = super().value(item)
        with self._file.open("a") as file:
            file.write(f"{item.prompt}\n")
        return value


class Referenced(Fake):
    def value(self, item: ScoreItem) -> float:
        return float(sum(int(r[0, 0, 0]) for r in item.reference_pixels()) / 255 / len(item.references))


def build(name: str, settings: ScorerSettings) -> Scorer:
    """A fake by its name; other names are real scorers."""
    if name in ("bright", "twin"):
        return Bright(name, ("image",))
    if name in ("number", "frail"):
        return Number(name, ("prompt",))
    if name == "counted":
        assert isinstance(settings, BerSettings)
        return Counted(name, Path(settings.model) / "measured")
    if name == "face":
        return Referenced(name, ("image", "references"))
    return registry.build(name, settings)
