"""PSNR: how well an image was reconstructed. 10 log10(255^2 / MSE) in dB over all samples, against references[0].

As in ITU-T J.340; UniRL-Zero's reconstruction reward. Equal images, whose PSNR is infinite, score CAP_DB. So do images
of 51 263 pixels and more that differ in one sample by 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from services.scorers.base import ScorerSpec
from services.settings_types import ScorerSettings
from synod.contracts import Outcome, Pixels, Score, ScoreFailure, ScoreItem
from synod.errors import InvalidItem

CAP_DB: Final = 100.0
PEAK: Final = 255.0


class PsnrSettings(ScorerSettings):
    """PSNR in dB against the first reference."""

    kind: Literal["psnr"]


def spec(name: str, settings: PsnrSettings) -> ScorerSpec:
    summary = "the reconstruction against the first reference, in dB"
    return ScorerSpec(name, ("image", "references"), 0.0, CAP_DB, "ITU-T J.340; UniRL-Zero", summary)


def build(name: str, settings: PsnrSettings) -> Psnr:
    return Psnr(name, settings)


class Psnr:
    def __init__(self, name: str, settings: PsnrSettings) -> None:
        self.spec = spec(name, settings)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [_one(item.pixels(), item.reference_pixels()[0]) for item in items]


def _one(image: Pixels, reference: Pixels) -> Outcome:
    (height, width, _), (reference_height, reference_width, _) = image.shape, reference.shape
    if (height, width) != (reference_height, reference_width):
        sizes = f"{width} x {height} pixels against a reference of {reference_width} x {reference_height}"
        return ScoreFailure.of(InvalidItem(f"{sizes}; PSNR needs equal sizes: resize one of them first"))
    error = mean_squared_error(image, reference)
    return Score(min(10 * math.log10(PEAK**2 / error), CAP_DB) if error else CAP_DB, {"mse": error})


def mean_squared_error(image: Pixels, reference: Pixels) -> float:
    """Return the mean over all samples of two uint8 [H W 3], in squared levels of 0..255; exact for any size."""
    difference = image.astype(np.int32) - reference
    return int(np.sum(difference * difference, dtype=np.int64)) / image.size
