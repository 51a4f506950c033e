"""What scorers share that hold a picture against references: each distinct picture is embedded once a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from services.models.images import distinct
from synod.contracts import Pixels, ScoreItem

Embed = Callable[[Sequence[Pixels]], NDArray[np.float32]]


def rows_of(items: Sequence[ScoreItem], embed: Embed) -> list[NDArray[np.float32]]:
    """For each item [1 + R, D]: the row of its picture, then those of its R references; one call of `embed` for all."""
    pictures = [(item.pixels(), *item.reference_pixels()) for item in items]
    kept, places = distinct([picture for group in pictures for picture in group])
    rows = embed(kept)[places]
    ends = np.cumsum([len(group) for group in pictures])[:-1]
    return list(np.split(rows, ends))


def cosines_of(items: Sequence[ScoreItem], embed: Embed) -> list[NDArray[np.float32]]:
    """For each item [R]: the cosines of its picture to its references, in [-1, 1]; `embed` gives rows of norm 1."""
    return [np.clip(rows[1:] @ rows[0], -1.0, 1.0) for rows in rows_of(items, embed)]
