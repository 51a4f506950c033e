"""A scorer without a model, for requests of real size: loaded by name in services of `up` and `serve deploy`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from synod.contracts import Outcome, Score, ScoreItem


def value_of(images: Sequence[Any], parity: int) -> float:
    """The mean of the rows of one parity, in 0..1; image k of several weighs k + 1, so that their order counts."""
    means = [float(image[parity::2].mean(dtype=np.float64)) / 255 for image in images]
    return float(np.average(means, weights=range(1, len(means) + 1)))


class Mean:
    """Scores the references, then the image, by `value_of`. With `detail_chars`, says that much beside the value."""

    def __init__(self, parity: int, detail_chars: int) -> None:
        self._parity, self._detail = parity, {"said": "x" * detail_chars}

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [
            Score(value_of((*item.reference_pixels(), item.pixels()), self._parity), self._detail) for item in items
        ]


def load(name: str, settings: Any) -> Mean:
    return Mean(settings.options["parity"], settings.options.get("detail_chars", 0))
