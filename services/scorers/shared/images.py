"""Deduplicate and crop images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from services.models.types import Box
from synod.contracts import Pixels


def deduplicate(images: Sequence[Pixels]) -> tuple[list[Pixels], list[int]]:
    """Return the distinct images in order of appearance, and for each input its index among them.

    The items of a group share their references, so each reference is embedded once a batch.
    """
    seen: dict[tuple[tuple[int, ...], bytes], int] = {}
    kept: list[Pixels] = []
    places: list[int] = []
    for image in images:
        key = (image.shape, hashlib.sha256(image.tobytes()).digest())
        if key not in seen:
            seen[key] = len(kept)
            kept.append(image)
        places.append(seen[key])
    return kept, places


def crop(image: Pixels, box: Box, margin: float) -> Pixels:
    """Cut out the box widened on each side by `margin` times its size, inside the image; at least one pixel."""
    height, width, _ = image.shape
    dx, dy = margin * (box[2] - box[0]), margin * (box[3] - box[1])
    x0, y0 = min(max(round(box[0] - dx), 0), width - 1), min(max(round(box[1] - dy), 0), height - 1)
    x1, y1 = max(min(round(box[2] + dx), width), x0 + 1), max(min(round(box[3] + dy), height), y0 + 1)
    return image[y0:y1, x0:x1]
