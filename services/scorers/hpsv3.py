"""HPSv3: how much would people prefer this image for the prompt? Ma et al. 2025: mu of a reward model on Qwen2-VL.

Nothing in the model bounds mu, so the value is clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from services.scorers.base import ScorerSpec
from services.scorers.shared.image_text import clipped, score_with_text
from services.settings_types import ModelSource, SingleModelSettings
from synod.contracts import Outcome, Pixels, ScoreItem

if TYPE_CHECKING:
    from services.models.hpsv3 import Hpsv3

LOW, HIGH = -30.0, 30.0


class Hpsv3Settings(SingleModelSettings):
    """HPSv3: a directory with `HPSv3.safetensors`, and one with Qwen2-VL's configuration, processor and tokenizer."""

    kind: Literal["hpsv3"]
    base: ModelSource = "Qwen/Qwen2-VL-7B-Instruct"


def spec(name: str, settings: Hpsv3Settings) -> ScorerSpec:
    summary = "human preference for the image, given the prompt"
    return ScorerSpec(name, ("image", "prompt"), LOW, HIGH, "Ma et al. 2025, HPSv3", summary)


def build(name: str, settings: Hpsv3Settings) -> Hpsv3Scorer:
    """Load the models. Raises SettingsError for files that are missing, unsafe or of another model."""
    from services.models import hpsv3
    from services.models.cache import Device

    return Hpsv3Scorer(spec(name, settings), hpsv3.load(settings.model, settings.base, Device.of(settings.serving)))


class Hpsv3Scorer:
    def __init__(self, spec: ScorerSpec, model: Hpsv3) -> None:
        self.spec = spec
        self._model = model

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return score_with_text(items, self._rewards)

    def _rewards(self, images: list[Pixels], texts: list[str]) -> list[Outcome]:
        found = self._model.rewards(images, texts).tolist()
        return [
            clipped(mu, LOW, HIGH, {"mu": mu, "log_sigma": log_sigma, "text": text})
            for (mu, log_sigma), text in zip(found, texts, strict=True)
        ]
