"""CLIP-I: does the picture look like the references? The cosine of CLIP image features, mean or max of several.

The metric of personalised generation (Ruiz et al. 2023, section 4.2; UniCTokens), and UniRL-Zero's cycle consistency
where the one reference is the picture before the edit and the scored one went forth and back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.models import clip
from services.scorer_settings import ClipISettings
from services.scorers.base import ScorerSpec
from services.scorers.references import cosines_of
from synod.contracts import Outcome, Score, ScoreItem


def spec(name: str) -> ScorerSpec:
    return ScorerSpec(
        name, ("image", "references"), -1.0, 1.0, "Ruiz et al. 2023, CLIP-I", "the picture against references"
    )


def build(name: str, settings: ClipISettings) -> ClipI:
    return ClipI(name, clip.build(settings.model, settings.serving), settings)


class ClipI:
    def __init__(self, name: str, model: clip.Clip, settings: ClipISettings) -> None:
        self.spec = spec(name)
        self._model = model
        self._reduce = np.mean if settings.references == "mean" else np.max
        self._references = settings.references

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [
            Score(float(self._reduce(cosines)), {"cosines": cosines.tolist(), "references": self._references})
            for cosines in cosines_of(items, self._model.image_features)
        ]
