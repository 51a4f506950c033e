"""Aesthetic score: how do people rate the image, of 10? A predictor on CLIP-L/14's image features of norm 1.

Schuhmann et al. 2022, section 3 (LAION-Aesthetics); the `sac+logos+ava1-l14-linearMSE` predictor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from services.models.settings import ClipModel
from services.models.types import Clip
from services.scorers.base import ScorerSpec
from services.scorers.shared.image_text import clipped
from services.settings_types import ModelSource, ScorerSettings
from synod.contracts import Outcome, ScoreItem

LOW, HIGH = 0.0, 10.0


class Rater(Protocol):
    def rate(self, features: NDArray[np.float32]) -> NDArray[np.float32]: ...


class AestheticSettings(ScorerSettings):
    """LAION's aesthetic predictor: a CLIP and the `weights` file of the layers on it."""

    kind: Literal["aesthetic"]
    model: ClipModel
    weights: ModelSource


def spec(name: str, settings: AestheticSettings) -> ScorerSpec:
    summary = "how people would rate the image, of 10"
    return ScorerSpec(name, ("image",), LOW, HIGH, "Schuhmann et al. 2022, LAION-Aesthetics", summary)


def build(name: str, settings: AestheticSettings) -> Aesthetic:
    """Load both models. Raises SettingsError for predictor weights that are missing, unsafe or for another CLIP."""
    from services.models import aesthetic, clip
    from services.models.cache import pick_device

    rater = aesthetic.load(settings.weights, pick_device(settings.serving.device))
    model = clip.build(settings.model, settings.serving)
    rater.rate(model.image_features([np.zeros((8, 8, 3), np.uint8)]))  # do the two fit?
    return Aesthetic(name, model, rater, settings)


class Aesthetic:
    def __init__(self, name: str, model: Clip, rater: Rater, settings: AestheticSettings) -> None:
        self.spec = spec(name, settings)
        self._model, self._rater = model, rater

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        ratings = self._rater.rate(self._model.image_features([item.pixels() for item in items]))
        return [clipped(float(rating), LOW, HIGH, {"rating": float(rating)}) for rating in ratings]
