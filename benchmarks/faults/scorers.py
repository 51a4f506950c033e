"""Scorers whose correct score is encoded in the image, each with a fault or a delay.

Ray workers import this module by name. The scorers' settings have a real `kind`; the name decides which is built, and
`model` is the folder of its log.
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
LOG: Final = "device.log"  # the numbers of the images that reached the device, one per line
BUSY_BATCH, BUSY_BATCH_S = 8, 0.1


def image_of(number: int, side: int = 16) -> Pixels:
    """Return uint8 [side side 3] in the one colour that encodes `number` (0 <= number < NUMBERS)."""
    colour = np.frombuffer(number.to_bytes(3, "big"), np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colour, (side, side, 3)))


def value(number: int) -> float:
    """Return the correct score of an image, in [0, 1)."""
    return number / NUMBERS


def number_of(score: float) -> float:
    """Return the number of the image with this score; a fraction if no image has it."""
    return score * NUMBERS


def identity(pixels: Pixels) -> Pixels:
    """Return the pixels unchanged."""
    return pixels


def bgr(pixels: Pixels) -> Pixels:
    """Return the pixels in reverse channel order."""
    return pixels[..., ::-1]


@dataclass
class Colour:
    """Scorer that decodes each image's colour; a batch takes `batch_s`."""

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
    """Build the scorer of this name."""
    makers: dict[str, Callable[[], Colour]] = {
        "colour": lambda: Colour(name, batch_s=0.02),
        "nan": lambda: Colour(name, breaks=lambda number: number % NAN_EVERY == 0),
        "busy": lambda: Colour(name, batch_s=BUSY_BATCH_S),
        "logged": lambda: Colour(name, batch_s=0.25, log=Path(getattr(settings, "model")) / LOG),  # noqa: B009
        "swapped": lambda: Colour(name, order=bgr),
    }
    return makers[name]()
