"""JPEG size as a reward: the decoded image is encoded again (quality 95, 4:2:0) and measured in kB of 1000 bytes.

Black et al. 2023, section 5 (compressibility); scaled as UniRL-Zero does: compressibility = -kB / 500,
incompressibility = kB. Only the pixels count, not the format or compression in which the image was sent.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final, Literal

from PIL import Image

from services.scorers.base import ScorerSpec
from services.settings_types import ScorerSettings
from synod.contracts import Outcome, Pixels, Score, ScoreFailure, ScoreItem
from synod.errors import InvalidItem

QUALITY: Final = 95
MAX_SIDE: Final = 65_500  # pixels, libjpeg's own limit
MAX_KB: Final = 1000.0  # of a larger file, so that the range is bounded
KB_PER_UNIT: Final = 500.0  # of compressibility


class JpegSettings(ScorerSettings):
    """JPEG size in kB of 1000 bytes, small or large as the reward; more than MAX_KB counts as MAX_KB."""

    kind: Literal["jpeg"]
    direction: Literal["compressibility", "incompressibility"]


def spec(name: str, settings: JpegSettings) -> ScorerSpec:
    source = "Black et al. 2023, section 5; UniRL-Zero's scale"
    if settings.direction == "compressibility":
        return ScorerSpec(name, ("image",), -MAX_KB / KB_PER_UNIT, 0.0, source, "how small the JPEG is")
    return ScorerSpec(name, ("image",), 0.0, MAX_KB, source, "how large the JPEG is, in kB")


def build(name: str, settings: JpegSettings) -> Jpeg:
    return Jpeg(name, settings)


class Jpeg:
    def __init__(self, name: str, settings: JpegSettings) -> None:
        self.spec = spec(name, settings)
        self._settings = settings

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [self._one(item.pixels()) for item in items]

    def _one(self, image: Pixels) -> Outcome:
        if max(image.shape) > MAX_SIDE:
            height, width, _ = image.shape
            return ScoreFailure.of(InvalidItem(f"{width} x {height} pixels; a JPEG has at most {MAX_SIDE} a side"))
        kb = kilobytes(image)
        counted = min(kb, MAX_KB)
        value = counted if self._settings.direction == "incompressibility" else -counted / KB_PER_UNIT
        return Score(value, {"kb": kb})


def kilobytes(image: Pixels) -> float:
    """Return the size of uint8 [H W 3] as a baseline JPEG, in units of 1000 bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return buffer.getbuffer().nbytes / 1000
