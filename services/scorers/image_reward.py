"""ImageReward: how much would people like this image for the prompt? Xu et al. 2023, section 3.

The reward has mean 0 and deviation 1 on the authors' data; nothing in the model bounds it, so the value is clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from services.scorer_settings import ImageRewardSettings
from services.scorers.base import ScorerSpec
from services.scorers.image_text import clipped, worded
from synod.contracts import Outcome, Pixels, ScoreItem

if TYPE_CHECKING:
    from services.models.image_reward import ImageReward

LOW, HIGH = -10.0, 10.0


def spec(name: str, settings: ImageRewardSettings) -> ScorerSpec:
    summary = "human preference for the image, given the prompt; mean 0, deviation 1"
    return ScorerSpec(name, ("image", "prompt"), LOW, HIGH, "Xu et al. 2023, ImageReward", summary)


def build(name: str, settings: ImageRewardSettings) -> ImageRewardScorer:
    """Raises SettingsError for files that are missing, unsafe or of another model."""
    from services.models import image_reward  # here, so that `spec` needs no torch
    from services.models.cache import Device

    model = image_reward.load(settings.model, settings.tokenizer, Device.of(settings.serving))
    return ImageRewardScorer(spec(name, settings), model)


class ImageRewardScorer:
    def __init__(self, spec: ScorerSpec, model: ImageReward) -> None:
        self.spec = spec
        self._model = model

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return worded(items, self._rewards)

    def _rewards(self, images: list[Pixels], texts: list[str]) -> list[Outcome]:
        rewards = self._model.rewards(images, texts)
        return [
            clipped(float(reward), LOW, HIGH, {"reward": float(reward), "text": text})
            for reward, text in zip(rewards, texts, strict=True)
        ]
