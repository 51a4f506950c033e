"""Crop images as the scorers do: an object on grey for its colour, a face for its identity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
GREY = 0x99
COLOR_SIZE, FACE_SIZE, FACE_STORED = 32, 32, 48
FACE_PADDING = FACE_STORED / 30


def color_crop(image: Pixels, mask: Mask, size: int = COLOR_SIZE) -> Pixels:
    """Return GenEval's colour crop: the mask's box, #999 outside the mask, as uint8 [size size 3]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    on_grey = np.where(mask[..., None], image, np.uint8(GREY))
    cut = on_grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(Image.fromarray(cut).resize((size, size), Image.Resampling.BICUBIC))


def perturb_mask(mask: Mask, rng: np.random.Generator) -> Mask:
    """Perturb a mask as a detector might: unchanged, one pixel wider, or one narrower if any remains."""
    kind = rng.integers(4)
    if kind < 2:
        return mask
    padded = np.pad(mask if kind == 2 else ~mask, 1, mode="edge")
    grown = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    result: Mask = grown if kind == 2 else ~grown
    return result if result.any() else mask


def face_patch(image: Pixels, box: tuple[float, float, float, float]) -> Pixels:
    """Crop around a face `box` (x0, y0, x1, y1) to uint8 [48 48 3]; the box is the middle 30 x 30 pixels."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half_x, half_y = (box[2] - box[0]) * FACE_PADDING / 2, (box[3] - box[1]) * FACE_PADDING / 2
    pad = int(np.ceil(max(half_x, half_y)))
    wide = Image.fromarray(np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
    around = (x - half_x + pad, y - half_y + pad, x + half_x + pad, y + half_y + pad)
    return np.asarray(wide.resize((FACE_STORED, FACE_STORED), Image.Resampling.BILINEAR, box=around))
