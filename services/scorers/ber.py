"""BER: does the picture show what the prompt says? Sync-R1, eq. 31, which leaves BLIP-2's head open.

`head = "itc"` (default): the contrastive cosine, the maximum over queries. `head = "itm"`: the matching head's
probability that they belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.scorer_settings import BerSettings
from services.scorers.base import ScorerSpec
from services.scorers.image_text import plain, wordless
from synod.contracts import Outcome, Pixels, Score, ScoreItem


class ImageText(Protocol):
    def image_features(self, images: Sequence[Pixels]) -> NDArray[np.float32]: ...
    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]: ...
    def match_probabilities(self, images: Sequence[Pixels], texts: Sequence[str]) -> NDArray[np.float32]: ...


def spec(name: str, settings: BerSettings) -> ScorerSpec:
    low = 0.0 if settings.head == "itm" else -1.0
    return ScorerSpec(name, ("image", "prompt"), low, 1.0, "Sync-R1, eq. 31", "the picture against its prompt")


def build(name: str, settings: BerSettings) -> Ber:
    from services.models import blip2  # here, so that `spec` needs no torch
    from services.models.cache import Device

    return Ber(name, blip2.load(settings.model, Device.of(settings.serving)), settings)


class Ber:
    def __init__(self, name: str, model: ImageText, settings: BerSettings) -> None:
        self.spec = spec(name, settings)
        self._model, self._head = model, settings.head

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        texts = [plain(item.prompt or "", item.concept) for item in items]
        usable = [i for i, text in enumerate(texts) if text]
        outcomes: list[Outcome] = [wordless(item.prompt) for item in items]
        if not usable:
            return outcomes
        images = [items[i].pixels() for i in usable]
        if self._head == "itm":
            for i, value in zip(
                usable, self._model.match_probabilities(images, [texts[i] for i in usable]), strict=True
            ):
                outcomes[i] = Score(float(value), {"head": "itm", "text": texts[i]})
            return outcomes
        prompts = sorted({texts[i] for i in usable})
        features = dict(zip(prompts, self._model.text_features(prompts), strict=True))
        for i, image in zip(usable, self._model.image_features(images), strict=True):
            cosines = np.clip(image @ features[texts[i]], -1.0, 1.0)
            query = int(cosines.argmax())
            outcomes[i] = Score(float(cosines[query]), {"query": query, "text": texts[i]})
        return outcomes
