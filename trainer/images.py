"""Files that are written whole or not at all, PNG images among them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from synod.contracts import Pixels
from synod.images import encode_png

SHEET_COLUMNS: Final = 4


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` under another name, then rename it: a reader sees the new file or the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_images(directory: Path, name: str, images: Mapping[int, Pixels]) -> None:
    """Write images uint8 [H W 3] by their numbers, number 7 as `directory`/NAME-007.png."""
    for index, image in images.items():
        write_whole(directory / image_name(name, index), encode_png(image))


def sheet(images: Sequence[Pixels], columns: int = SHEET_COLUMNS) -> Pixels:
    """Return images of one size side by side in rows, uint8 [H W 3]; places without an image are white."""
    rows = -(-len(images) // columns)
    blank = np.full_like(images[0], 255)
    places = [*images, *[blank] * (rows * columns - len(images))]
    return np.concatenate([np.concatenate(places[i * columns : (i + 1) * columns], 1) for i in range(rows)])


def image_name(name: str, index: int) -> str:
    """Return the name of an image's file."""
    return f"{name}-{index:03d}.png"
