"""What a detector is: one record and one protocol for every family; `build` loads a family. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from synod.contracts import Pixels

if TYPE_CHECKING:
    from services.models.cache import Device

Box = tuple[float, float, float, float]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """One object: score in [0, 1], mask [H W], box (x0, y0, x1, y1) in the picture's pixels, far edges exclusive."""

    class_name: str
    score: float
    box: Box
    mask: Mask


class Detector(Protocol):
    """`detect` takes pictures of any sizes and gives one list each, every candidate of `classes` with its score."""

    class_names: tuple[str, ...]

    def detect(self, images: Sequence[Pixels], classes: Collection[str] | None = None) -> list[list[Detection]]:
        """Of all classes when `classes` is None."""
        ...


def box_of(mask: Mask) -> Box:
    """The tight box around a mask that is not empty."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)


def build(
    *, family: Literal["semantic", "mask2former"], model: str, device: Device | str, min_area: int = 1
) -> Detector:
    """The detector of a settings' `detector` table, its model shared per process. `min_area` (px) is for `semantic`."""
    if family == "mask2former":
        from services.models import mask2former

        return mask2former.load(model, device)
    from services.models import semantic

    return semantic.load(model, device, min_area)
