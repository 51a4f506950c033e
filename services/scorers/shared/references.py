"""Shared by scorers of an image and its references. Each distinct image of a batch is embedded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from services.scorers.base import ScorerSpec
from services.scorers.shared.images import deduplicate
from synod.contracts import Outcome, Pixels, Score, ScoreItem

Embed = Callable[[Sequence[Pixels]], NDArray[np.float32]]


class ReferenceCosine:
    """The mean of an image's cosines to its references; `embed` returns rows of norm 1."""

    def __init__(self, spec: ScorerSpec, embed: Embed) -> None:
        self.spec = spec
        self._embed = embed

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [Score(float(np.mean(one)), {"cosines": one.tolist()}) for one in cosines_of(items, self._embed)]


def rows_of(items: Sequence[ScoreItem], embed: Embed) -> list[NDArray[np.float32]]:
    """Return [1 + R, D] for each item: the row of its image, then of its R references. Calls `embed` once."""
    images = [(item.pixels(), *item.reference_pixels()) for item in items]
    kept, places = deduplicate([image for group in images for image in group])
    rows = embed(kept)[places]
    ends = np.cumsum([len(group) for group in images])[:-1]
    return list(np.split(rows, ends))


def cosines_of(items: Sequence[ScoreItem], embed: Embed) -> list[NDArray[np.float32]]:
    """Return [R] for each item: the cosines of its image to its references. `embed` returns rows of norm 1."""
    return [np.clip(rows[1:] @ rows[0], -1.0, 1.0) for rows in rows_of(items, embed)]
