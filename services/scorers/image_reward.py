"""ImageReward: how much would people like this image for the prompt? Xu et al. 2023, section 3.

The reward has mean 0 and deviation 1 on the authors' data; nothing in the model bounds it, so the value is clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from services.scorers.base import ScorerSpec
from services.scorers.shared.image_text import clipped, score_with_text
from services.settings_types import ModelSource, SingleModelSettings
from synod.contracts import Outcome, Pixels, ScoreItem

if TYPE_CHECKING:
    from services.models.image_reward import ImageReward

LOW, HIGH = -10.0, 10.0


class ImageRewardSettings(SingleModelSettings):
    """ImageReward: a directory with `ImageReward.pt` and `med_config.json`, and BERT's uncased tokenizer."""

    kind: Literal["image_reward"]
    tokenizer: ModelSource = "google-bert/bert-base-uncased"


def spec(name: str, settings: ImageRewardSettings) -> ScorerSpec:
    summary = "human preference for the image, given the prompt; mean 0, deviation 1"
    return ScorerSpec(name, ("image", "prompt"), LOW, HIGH, "Xu et al. 2023, ImageReward", summary)


def build(name: str, settings: ImageRewardSettings) -> ImageRewardScorer:
    """Load the models. Raises SettingsError for files that are missing, unsafe or of another model."""
    from services.models import image_reward
    from services.models.cache import Device

    model = image_reward.load(settings.model, settings.tokenizer, Device.of(settings.serving))
    return ImageRewardScorer(spec(name, settings), model)


class ImageRewardScorer:
    def __init__(self, spec: ScorerSpec, model: ImageReward) -> None:
        self.spec = spec
        self._model = model

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return score_with_text(items, self._rewards)

    def _rewards(self, images: list[Pixels], texts: list[str]) -> list[Outcome]:
        rewards = self._model.rewards(images, texts)
        return [
            clipped(float(reward), LOW, HIGH, {"reward": float(reward), "text": text})
            for reward, text in zip(rewards, texts, strict=True)
        ]
