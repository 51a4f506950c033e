"""BER: does the image show what the prompt says? Sync-R1, eq. 31, which leaves BLIP-2's head open.

`head = "itc"` (default): the contrastive cosine, the maximum over queries. `head = "itm"`: the matching head's
probability that they belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from services.scorers.base import ScorerSpec
from services.scorers.shared.image_text import each_once, score_with_text
from services.settings_types import SingleModelSettings
from synod.contracts import Outcome, Pixels, Score, ScoreItem


class ImageText(Protocol):
    def image_features(self, images: Sequence[Pixels]) -> NDArray[np.float32]: ...
    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]: ...
    def match_probabilities(self, images: Sequence[Pixels], texts: Sequence[str]) -> NDArray[np.float32]: ...


class BerSettings(SingleModelSettings):
    """BER (eq. 31): BLIP-2's contrastive cosine, the maximum over queries, or its matching head's probability."""

    kind: Literal["ber"]
    head: Literal["itc", "itm"] = "itc"


def spec(name: str, settings: BerSettings) -> ScorerSpec:
    low = 0.0 if settings.head == "itm" else -1.0
    return ScorerSpec(name, ("image", "prompt"), low, 1.0, "Sync-R1, eq. 31", "the image against its prompt")


def build(name: str, settings: BerSettings) -> Ber:
    from services.models import blip2
    from services.models.cache import Device

    return Ber(name, blip2.load(settings.model, Device.of(settings.serving)), settings)


class Ber:
    def __init__(self, name: str, model: ImageText, settings: BerSettings) -> None:
        self.spec = spec(name, settings)
        self._model, self._head = model, settings.head

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return score_with_text(items, self._match if self._head == "itm" else self._contrast)

    def _match(self, images: list[Pixels], texts: list[str]) -> list[Outcome]:
        values = self._model.match_probabilities(images, texts)
        return [Score(float(value), {"head": "itm", "text": text}) for value, text in zip(values, texts, strict=True)]

    def _contrast(self, images: list[Pixels], texts: list[str]) -> list[Outcome]:
        features = each_once(texts, self._model.text_features)
        outcomes: list[Outcome] = []
        for image, text in zip(self._model.image_features(images), texts, strict=True):
            cosines = np.clip(image @ features[text], -1.0, 1.0)
            query = int(cosines.argmax())
            outcomes.append(Score(float(cosines[query]), {"query": query, "text": text}))
        return outcomes
