"""Scorers without models, for tests of the service itself. Ray workers import this module by name.

Their settings have a real `kind`; the scorer's name decides which fake is built.
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
    """Return a value from the item, with the process id and the batch size as its detail."""

    def __init__(self, name: str, needs: tuple[Need, ...]) -> None:
        self.spec = ScorerSpec(name, needs, 0.0, 1.0, "a test", "a test")

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [Score(self.value(item), {"pid": os.getpid(), "batch": len(items)}) for item in items]

    def value(self, item: ScoreItem) -> float:
        raise NotImplementedError


class Bright(Fake):
    """Return the image's mean, in 0..1."""

    def value(self, item: ScoreItem) -> float:
        return float(item.pixels().mean() / 255)


class Number(Fake):
    """Return the number in a prompt like '0.25' or '0.25 sleep 2'; fail on 'poison'."""

    def value(self, item: ScoreItem) -> float:
        assert item.prompt is not None
        if item.prompt == "poison":
            raise ValueError("poisoned")
        number, _, seconds = item.prompt.partition(" sleep ")
        time.sleep(float(seconds or 0))
        return float(number)


class Counted(Number):
    """Append each prompt, once scored, to `file`, which the replicas share."""

    def __init__(self, name: str, file: Path) -> None:
        super().__init__(name, ("image", "prompt"))
        self._file = file

    def value(self, item: ScoreItem) -> float:
        value = super().value(item)
        with self._file.open("a") as file:
            file.write(f"{item.prompt}\n")
        return value


class Referenced(Fake):
    """Return the mean of the references' first bytes, in 0..1."""

    def value(self, item: ScoreItem) -> float:
        return float(sum(int(r[0, 0, 0]) for r in item.reference_pixels()) / 255 / len(item.references))


def build(name: str, settings: ScorerSettings) -> Scorer:
    """Return the fake of this name, or the real scorer if no fake has it."""
    if name in ("bright", "colocated"):
        return Bright(name, ("image",))
    if name == "number" or name.startswith("frail"):
        return Number(name, ("prompt",))
    if name == "counted":
        assert isinstance(settings, BerSettings)
        return Counted(name, Path(settings.model) / "measured")
    if name == "face":
        return Referenced(name, ("image", "references"))
    return registry.build(name, settings)
