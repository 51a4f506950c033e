"""Scorers whose right answer is written in the image, each with a fault or a price. Workers import this by name.

Settings of a real kind stand in for theirs: the name alone tells which is built, and `model` is a folder for its log.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from services.scorers.base import ScorerSpec
from services.settings_types import ScorerSettings
from synod.contracts import Outcome, Pixels, Score, ScoreItem

NUMBERS: Final = 2**24  # an image's number is its colour
NAN_EVERY: Final = 100
LOG: Final = "device.log"  # one line an image that reached the device: its number
BUSY_BATCH, BUSY_BATCH_S = 8, 0.1


def image_of(number: int, side: int = 16) -> Pixels:
    """uint8 [side side 3], all of one colour, which is `number` (0 <= number < NUMBERS)."""
    colour = np.frombuffer(number.to_bytes(3, "big"), np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colour, (side, side, 3)))


def value(number: int) -> float:
    """The right score of an image, in [0, 1)."""
    return number / NUMBERS


def number_of(score: float) -> float:
    """The number of the image that a score belongs to; a fraction for a score that belongs to none."""
    return score * NUMBERS


def identity(pixels: Pixels) -> Pixels:
    return pixels


def bgr(pixels: Pixels) -> Pixels:
    """What a library with another channel order makes of it."""
    return pixels[..., ::-1]


@dataclass
class Colour:
    """Reads the colour of each image; a batch takes `batch_s` on the device."""

    name: str
    batch_s: float = 0.0
    log: Path | None = None
    breaks: Callable[[int], bool] = lambda number: False
    order: Callable[[Pixels], Pixels] = identity
    spec: ScorerSpec = field(init=False)

    def __post_init__(self) -> None:
        self.spec = ScorerSpec(self.name, ("image",), 0.0, 1.0, "a fault", "the image's colour as a number")

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        numbers = [int.from_bytes(self.order(item.pixels())[-1, -1].tobytes(), "big") for item in items]
        if self.log is not None:
            with self.log.open("a") as log:
                log.write("".join(f"{number}\n" for number in numbers))
        time.sleep(self.batch_s)
        return [Score(math.nan if self.breaks(n) else value(n), {"pid": os.getpid()}) for n in numbers]


def build(name: str, settings: ScorerSettings) -> Colour:
    """The scorer of this name."""
    makers: dict[str, Callable[[], Colour]] = {
        "colour": lambda: Colour(name, batch_s=0.02),
        "nan": lambda: Colour(name, breaks=lambda number: number % NAN_EVERY == 0),
        "busy": lambda: Colour(name, batch_s=BUSY_BATCH_S),
        "logged": lambda: Colour(name, batch_s=0.25, log=Path(getattr(settings, "model")) / LOG),  # noqa: B009
        "swapped": lambda: Colour(name, order=bgr),
    }
    return makers[name]()
