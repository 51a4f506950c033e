"""DER: does the picture look like the concept's references? Sync-R1, eq. 32: DINOv2 cosine, mean or max of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.models.images import distinct
from services.scorer_settings import DerSettings
from services.scorers.base import ScorerSpec
from synod.contracts import Outcome, Pixels, Score, ScoreItem


class Embedder(Protocol):
    def embed(self, images: Sequence[Pixels]) -> NDArray[np.float32]: ...


def spec(name: str) -> ScorerSpec:
    summary = "the picture against the concept's references"
    return ScorerSpec(name, ("image", "references"), -1.0, 1.0, "Sync-R1, eq. 32", summary)


def build(name: str, settings: DerSettings) -> Der:
    from services.models import dinov2  # here, so that `spec` needs no torch
    from services.models.cache import pick_device

    return Der(name, dinov2.load(settings.model, pick_device(settings.serving.device)), settings)


class Der:
    def __init__(self, name: str, model: Embedder, settings: DerSettings) -> None:
        self.spec = spec(name)
        self._model = model
        self._reduce = np.mean if settings.references == "mean" else np.max
        self._references = settings.references

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        pictures = [(item.pixels(), *item.reference_pixels()) for item in items]
        kept, places = distinct([picture for group in pictures for picture in group])
        rows = self._model.embed(kept)
        outcomes: list[Outcome] = []
        start = 0
        for group in pictures:
            image, *references = (rows[place] for place in places[start : start + len(group)])
            start += len(group)
            cosines = np.clip(np.stack(references) @ image, -1.0, 1.0)
            detail = {"cosines": cosines.tolist(), "references": self._references}
            outcomes.append(Score(float(self._reduce(cosines)), detail))
        return outcomes
