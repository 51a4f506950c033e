"""What a detector is: one record and one protocol for every family; `build` loads a family. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from synod.contracts import Pixels

if TYPE_CHECKING:
    from services.models.cache import Device

T = TypeVar("T", bound=np.generic)
Box = tuple[float, float, float, float]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """One object: score in [0, 1], box (x0, y0, x1, y1) in the image's pixels, far edges exclusive.

    `bits` is the mask within the box, eight pixels a byte: 100 masks of a 4096 x 4096 image take 0.2 GiB.
    """

    class_name: str
    score: float
    box: Box
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, class_name: str, score: float, box: Box, mask: Mask) -> Detection:
        """The object with the mask `mask` [h w] within its box, whose edges are whole pixels."""
        return cls(class_name, score, box, np.packbits(mask))

    @property
    def mask(self) -> Mask:
        """[h w]: the mask within the box."""
        x0, y0, x1, y1 = map(round, self.box)
        flat = np.unpackbits(self.bits, count=(y1 - y0) * (x1 - x0))
        return flat.view(np.bool_).reshape(y1 - y0, x1 - x0)


class Detector(Protocol):
    """`detect` takes images of any sizes and returns one list each, every candidate of `classes` with its score."""

    class_names: tuple[str, ...]

    def detect(
        self, images: Sequence[Pixels], classes: Collection[str] | None = None, least: float = 0.0
    ) -> list[list[Detection]]:
        """Detections of all classes when `classes` is None, and of a score of at least `least` in float32."""
        ...


def box_of(mask: Mask) -> Box:
    """The tight box around a mask that is not empty."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)


def within(image: NDArray[T], box: Box) -> NDArray[T]:
    """The part of an image or a mask [H W ..] within a box whose edges are whole pixels."""
    x0, y0, x1, y1 = map(round, box)
    return image[y0:y1, x0:x1]


def build(
    *, family: Literal["semantic", "mask2former"], model: str, device: Device | str, min_area: int = 1
) -> Detector:
    """The detector of a settings' `detector` table, its model shared per process. `min_area` (px) is for `semantic`."""
    if family == "mask2former":
        from services.models import mask2former

        return mask2former.load(model, device)
    from services.models import semantic

    return semantic.load(model, device, min_area)
