"""Cut-outs of an image as the scorers make them: an object on grey for its colour, a face for its identity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
GREY = 0x99
COLOR_SIZE, FACE_SIZE, FACE_STORED = 32, 32, 48
FACE_ROOM = FACE_STORED / 30


def color_crop(image: Pixels, mask: Mask, size: int = COLOR_SIZE) -> Pixels:
    """GenEval's colour crop: `mask`'s box of an uint8 [H W 3] image, #999 outside the mask, as [size size 3]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    on_grey = np.where(mask[..., None], image, np.uint8(GREY))
    cut = on_grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(Image.fromarray(cut).resize((size, size), Image.Resampling.BICUBIC))


def ragged(mask: Mask, rng: np.random.Generator) -> Mask:
    """`mask` as a detector might give it: as it is, one pixel wider, or one pixel narrower where anything is left."""
    kind = rng.integers(4)
    if kind < 2:
        return mask
    padded = np.pad(mask if kind == 2 else ~mask, 1, mode="edge")
    grown = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    result: Mask = grown if kind == 2 else ~grown
    return result if result.any() else mask


def face_patch(image: Pixels, box: tuple[float, float, float, float]) -> Pixels:
    """The surroundings of a face `box` (x0, y0, x1, y1), uint8 [48 48 3]; the box fills the middle 30 x 30 pixels."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half_x, half_y = (box[2] - box[0]) * FACE_ROOM / 2, (box[3] - box[1]) * FACE_ROOM / 2
    pad = int(np.ceil(max(half_x, half_y)))
    wide = Image.fromarray(np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
    around = (x - half_x + pad, y - half_y + pad, x + half_x + pad, y + half_y + pad)
    return np.asarray(wide.resize((FACE_STORED, FACE_STORED), Image.Resampling.BILINEAR, box=around))
