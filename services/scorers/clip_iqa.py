"""CLIP-IQA: the probability that CLIP calls the image a good photo rather than a bad one (Wang et al. 2023, eq. 1-2).

    p = exp(s1) / (exp(s1) + exp(s2)),  s_i = 100 * cos(image, prompt_i)

over the antonym pair "Good photo." and "Bad photo."; 100 is CLIP's own logit scale. Deviation: the paper takes a
ResNet-50 without positional embedding at the image's own size, here any CLIP prepares the image as it was trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

from services.models.settings import ClipModel
from services.models.types import Clip
from services.scorers.base import ScorerSpec
from services.settings_types import ScorerSettings
from synod.contracts import Outcome, Score, ScoreItem

PROMPTS: Final = ("Good photo.", "Bad photo.")
SCALE: Final = 100.0


class ClipIqaSettings(ScorerSettings):
    """CLIP-IQA: image quality without a reference, by a CLIP."""

    kind: Literal["clip_iqa"]
    model: ClipModel


def spec(name: str, settings: ClipIqaSettings) -> ScorerSpec:
    summary = "how much more the image is a good photo than a bad one"
    return ScorerSpec(name, ("image",), 0.0, 1.0, "Wang et al. 2023, CLIP-IQA", summary)


def build(name: str, settings: ClipIqaSettings) -> ClipIqa:
    from services.models import clip

    return ClipIqa(name, clip.build(settings.model, settings.serving), settings)


class ClipIqa:
    def __init__(self, name: str, model: Clip, settings: ClipIqaSettings) -> None:
        self.spec = spec(name, settings)
        self._model, self._prompts = model, model.text_features(PROMPTS)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        images = self._model.image_features([item.pixels() for item in items])
        return [_outcome(float(good), float(bad)) for good, bad in images @ self._prompts.T]


def _outcome(good: float, bad: float) -> Score:
    """Return the softmax of both cosines; the difference decides, so that no exponential overflows."""
    return Score(1 / (1 + math.exp(SCALE * (bad - good))), {"good": good, "bad": bad})
