"""Directional CLIP similarity: did the edit change the image as the prompts say?

cos(E_I(image) - E_I(source), E_T(prompt) - E_T(source_prompt)) over features of norm 1 (Gal et al. 2022, eq. 2, as a
metric in Brooks et al. 2023; UniRL-Zero's `sim_direction`). The source image is references[0].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from services.models.settings import ClipModel
from services.models.types import Clip
from services.scorers.base import ScorerSpec
from services.scorers.shared.image_text import each_once, to_plain_text
from services.scorers.shared.references import rows_of
from services.settings_types import ScorerSettings
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import InvalidItem, NonFinite

MIN_LENGTH: Final = 1e-3  # of a direction between two vectors of norm 1; below it, rounding turns the direction


class ClipDirectionSettings(ScorerSettings):
    """Directional CLIP similarity of an edit: references[0] and `source_prompt` are what it started from."""

    kind: Literal["clip_direction"]
    model: ClipModel


def spec(name: str, settings: ClipDirectionSettings) -> ScorerSpec:
    return ScorerSpec(
        name,
        ("image", "prompt", "references", "source_prompt"),
        -1.0,
        1.0,
        "Gal et al. 2022, eq. 2",
        "the edit of the image against its prompts",
    )


def build(name: str, settings: ClipDirectionSettings) -> ClipDirection:
    from services.models import clip

    return ClipDirection(name, clip.build(settings.model, settings.serving), settings)


class ClipDirection:
    def __init__(self, name: str, model: Clip, settings: ClipDirectionSettings) -> None:
        self.spec = spec(name, settings)
        self._model = model

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        prompts = [
            (to_plain_text(i.prompt or "", i.concept), to_plain_text(i.source_prompt or "", i.concept)) for i in items
        ]
        texts = [text for pair in prompts for text in pair if text]
        if not texts:
            return [_no_text()] * len(items)
        features = each_once(texts, self._model.text_features)
        images = rows_of(items, self._model.image_features)
        return [
            _one(rows[0] - rows[1], features[new] - features[old]) if new and old else _no_text()
            for rows, (new, old) in zip(images, prompts, strict=True)
        ]


def _one(image: NDArray[np.float32], text: NDArray[np.float32]) -> Outcome:
    lengths = {"image": float(np.linalg.norm(image)), "text": float(np.linalg.norm(text))}
    for what, length in lengths.items():
        if not math.isfinite(length):
            return ScoreFailure.of(NonFinite(f"the features of the {what} and its source differ by {length}"))
        if length < MIN_LENGTH:
            reason = f"the {what} and its source are the same to CLIP (their features differ by {length:.1e}"
            remedy = "give an edit, and prompts that differ"
            return ScoreFailure.of(InvalidItem(f"{reason}, the least is {MIN_LENGTH:g}): no direction; {remedy}"))
    cosine = float(image @ text) / (lengths["image"] * lengths["text"])
    return Score(min(max(cosine, -1.0), 1.0), {"lengths": lengths})


def _no_text() -> ScoreFailure:
    reason = "prompt or source_prompt has no words besides concept tokens; give concept.class_word or longer prompts"
    return ScoreFailure.of(InvalidItem(reason))
