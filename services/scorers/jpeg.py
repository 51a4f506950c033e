"""JPEG size as a reward: the decoded image is encoded again (quality 95, 4:2:0) and measured in kB of 1000 bytes.

Black et al. 2023, section 5 (compressibility); scaled as UniRL-Zero does: compressibility = -kB / 500,
incompressibility = kB. How the image came (PNG or JPEG, how hard it was pressed) does not count, only its pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final, Literal

from PIL import Image
from pydantic import Field

from services.scorers.base import ScorerSpec
from services.settings_types import ScorerSettings
from synod.contracts import Outcome, Pixels, Score, ScoreFailure, ScoreItem
from synod.errors import InvalidItem

QUALITY: Final = 95
MAX_SIDE: Final = 65_500  # pixels, libjpeg's own limit
KB_PER_UNIT: Final = 500.0  # of compressibility


class JpegSettings(ScorerSettings):
    """JPEG size in kB of 1000 bytes, small or large as the reward; what is above `max_kb` counts as `max_kb`."""

    kind: Literal["jpeg"]
    direction: Literal["compressibility", "incompressibility"]
    max_kb: float = Field(1000.0, gt=0, allow_inf_nan=False)


def spec(name: str, settings: JpegSettings) -> ScorerSpec:
    source = "Black et al. 2023, section 5; UniRL-Zero's scale"
    if settings.direction == "compressibility":
        return ScorerSpec(name, ("image",), -settings.max_kb / KB_PER_UNIT, 0.0, source, "how small the JPEG is")
    return ScorerSpec(name, ("image",), 0.0, settings.max_kb, source, "how large the JPEG is, in kB")


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
        counted = min(kb, self._settings.max_kb)
        value = counted if self._settings.direction == "incompressibility" else -counted / KB_PER_UNIT
        return Score(value, {"kb": kb})


def kilobytes(image: Pixels) -> float:
    """The size of uint8 [H W 3] as a baseline JPEG, in units of 1000 bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return buffer.tell() / 1000
