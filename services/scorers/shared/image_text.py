"""Shared by scorers of an image and a text: plain text of a prompt, and the cosine of their features."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.models.types import Clip
from services.scorers.base import ScorerSpec
from synod.contracts import Concept, Outcome, Pixels, Score, ScoreFailure, ScoreItem
from synod.errors import InvalidItem

_CONCEPT_TOKEN = re.compile(r"<[^<>\s]+>")


class ImageTextCosine:
    """Scores `factor` * cosine of image and prompt features. A prompt that several images share is embedded once."""

    def __init__(self, spec: ScorerSpec, model: Clip, factor: float = 1.0) -> None:
        self.spec = spec
        self._model, self._factor = model, factor

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return score_with_text(items, self._cosines)

    def _cosines(self, images: list[Pixels], texts: list[str]) -> list[Outcome]:
        features = each_once(texts, self._model.text_features)
        outcomes: list[Outcome] = []
        for image, text in zip(self._model.image_features(images), texts, strict=True):
            cosine = float(np.clip(image @ features[text], -1.0, 1.0))
            outcomes.append(Score(self._factor * cosine, {"cosine": cosine, "text": text}))
        return outcomes


def score_with_text(
    items: Sequence[ScoreItem], measure: Callable[[list[Pixels], list[str]], Sequence[Outcome]]
) -> list[Outcome]:
    """Score the images and plain texts of `items` with `measure`. An item whose prompt has no text fails alone."""
    texts = [to_plain_text(item.prompt or "", item.concept) for item in items]
    images = [item.pixels() for item, text in zip(items, texts, strict=True) if text]
    found = iter(measure(images, [text for text in texts if text]) if images else ())
    return [next(found) if text else no_text_failure(item.prompt) for item, text in zip(items, texts, strict=True)]


def clipped(value: float, low: float, high: float, detail: Mapping[str, Any]) -> Score:
    """Return a score clipped to [low, high]. `detail` should have the unclipped value.

    NaN and infinities stay, which makes the score a NonFinite failure (`services.isolation`).
    """
    return Score(min(max(value, low), high) if math.isfinite(value) else value, detail)


def each_once(
    texts: Sequence[str], embed: Callable[[Sequence[str]], NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """Return the row of each text; repeated texts are embedded once."""
    distinct = sorted(set(texts))
    return dict(zip(distinct, embed(distinct), strict=True))


def to_plain_text(prompt: str, concept: Concept | None) -> str:
    """Replace the concept's token by its class word and remove other '<...>' tokens."""
    if concept and concept.token and concept.class_word:
        token = re.escape(concept.token)
        if not concept.token.startswith("<"):
            token = rf"(?<!\w){token}(?!\w)"  # a bare word, as "sks", must not match inside another
        prompt = re.sub(token, lambda _: str(concept.class_word), prompt)
    return " ".join(_CONCEPT_TOKEN.sub(" ", prompt).split())


def bare_names(text: str) -> str:
    """Return the text with the names of concepts without their brackets: "bo" for "<bo>"."""
    return _CONCEPT_TOKEN.sub(lambda found: found.group()[1:-1], text)


def no_text_failure(prompt: str | None) -> ScoreFailure:
    """Return the failure of a prompt whose plain text is empty."""
    reason = "the prompt has no words besides concept tokens; give concept.class_word or a longer prompt"
    return ScoreFailure.of(InvalidItem(f"{reason}: {prompt!r}"))
