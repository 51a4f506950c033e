"""What scorers share that hold an image against a text: prompts in words, and the cosine of two towers."""

from __future__ import annotations

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
    """`factor` * cosine of the image's and the prompt's features; a prompt that many images share is read once."""

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
    """What `measure` makes of the images and their prompts in words; an item whose prompt has none fails alone."""
    texts = [to_plain_text(item.prompt or "", item.concept) for item in items]
    images = [item.pixels() for item, text in zip(items, texts, strict=True) if text]
    found = iter(measure(images, [text for text in texts if text]) if images else ())
    return [next(found) if text else no_text_failure(item.prompt) for item, text in zip(items, texts, strict=True)]


def clipped(value: float, low: float, high: float, detail: Mapping[str, Any]) -> Score:
    """A score of the value, or of the end of the range that it is beyond; NaN stays. `detail` has the unclipped one."""
    return Score(value if np.isnan(value) else min(max(value, low), high), detail)


def each_once(
    texts: Sequence[str], embed: Callable[[Sequence[str]], NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """The row of each text; one that comes often is embedded once."""
    distinct = sorted(set(texts))
    return dict(zip(distinct, embed(distinct), strict=True))


def to_plain_text(prompt: str, concept: Concept | None) -> str:
    """The prompt in words a text tower knows: the concept's token becomes its class word, other '<...>' tokens go."""
    if concept and concept.token and concept.class_word:
        token = re.escape(concept.token)
        if not concept.token.startswith("<"):
            token = rf"(?<!\w){token}(?!\w)"  # a bare word, as "sks", must not match inside another
        prompt = re.sub(token, lambda _: str(concept.class_word), prompt)
    return " ".join(_CONCEPT_TOKEN.sub(" ", prompt).split())


def no_text_failure(prompt: str | None) -> ScoreFailure:
    """Why a prompt whose `plain` form is empty has no score."""
    reason = "the prompt has no words besides concept tokens; give concept.class_word or a longer prompt"
    return ScoreFailure.of(InvalidItem(f"{reason}: {prompt!r}"))
