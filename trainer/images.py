"""Files that are written whole or not at all, PNG images among them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from synod.contracts import Pixels
from synod.images import encode_png


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` under another name, then rename it: a reader sees the new file or the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_images(directory: Path, name: str, images: Sequence[Pixels]) -> list[Path]:
    """Write images uint8 [H W 3] as `directory`/NAME-000.png, NAME-001.png, ... and return their paths."""
    paths = [directory / f"{name}-{index:03d}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        write_whole(path, encode_png(image))
    return paths
