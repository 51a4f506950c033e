"""What scorers share that hold a picture against a text: prompts in words, and the cosine of two towers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from services.models.clip import Clip
from services.scorers.base import ScorerSpec
from synod.contracts import Concept, Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import InvalidItem

_CONCEPT_TOKEN = re.compile(r"<[^<>\s]+>")


class ImageTextCosine:
    """`factor` * cosine of the picture's and the prompt's features; a prompt that many pictures share is read once."""

    def __init__(self, spec: ScorerSpec, model: Clip, factor: float = 1.0) -> None:
        self.spec = spec
        self._model, self._factor = model, factor

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        texts = [plain(item.prompt or "", item.concept) for item in items]
        outcomes: list[Outcome] = [wordless(item.prompt) for item in items]
        usable = [i for i, text in enumerate(texts) if text]
        if not usable:
            return outcomes
        prompts = sorted({texts[i] for i in usable})
        features = dict(zip(prompts, self._model.text_features(prompts), strict=True))
        images = self._model.image_features([items[i].pixels() for i in usable])
        for i, image in zip(usable, images, strict=True):
            cosine = float(np.clip(image @ features[texts[i]], -1.0, 1.0))
            outcomes[i] = Score(self._factor * cosine, {"cosine": cosine, "text": texts[i]})
        return outcomes


def plain(prompt: str, concept: Concept | None) -> str:
    """The prompt in words a text tower knows: the concept's token becomes its class word, other '<...>' tokens go."""
    if concept and concept.token and concept.class_word:
        token = re.escape(concept.token)
        if not concept.token.startswith("<"):
            token = rf"(?<!\w){token}(?!\w)"  # a bare word, as "sks", must not match inside another
        prompt = re.sub(token, lambda _: str(concept.class_word), prompt)
    return " ".join(_CONCEPT_TOKEN.sub(" ", prompt).split())


def wordless(prompt: str | None) -> ScoreFailure:
    """Why a prompt whose `plain` form is empty has no score."""
    reason = "the prompt has no words besides concept tokens; give concept.class_word or a longer prompt"
    return ScoreFailure.of(InvalidItem(f"{reason}: {prompt!r}"))
