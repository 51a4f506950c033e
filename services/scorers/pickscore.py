"""PickScore: would people pick this image for the prompt? exp(logit_scale) * cosine / 26 of a tuned CLIP-H.

Kirstain et al. 2023, section 4; the divisor brings good images near 1 and is that of flow_grpo and UniRL-Zero.
"""

from __future__ import annotations

from typing import Final, Literal

from services.scorers.base import ScorerSpec
from services.scorers.shared.image_text import ImageTextCosine
from services.settings_types import ModelSource, SingleModelSettings
from synod.errors import SettingsError

DIVISOR: Final = 26.0
MAX_SCALE: Final = 100.0  # CLIP's training keeps exp(logit_scale) at or below it


class PickScoreSettings(SingleModelSettings):
    """PickScore. `processor` is where image processor and tokenizer come from, when not from `model`."""

    kind: Literal["pickscore"]
    processor: ModelSource | None = None


def spec(name: str, settings: PickScoreSettings) -> ScorerSpec:
    most, summary = MAX_SCALE / DIVISOR, "human preference for the image, given the prompt"
    return ScorerSpec(name, ("image", "prompt"), -most, most, "Kirstain et al. 2023, PickScore", summary)


def build(name: str, settings: PickScoreSettings) -> ImageTextCosine:
    """Load the models. Raises SettingsError for weights that are not a CLIPModel, or whose scale is not a CLIP's."""
    from services.models import transformers_clip
    from services.models.cache import Device

    model = transformers_clip.load(settings.model, Device.of(settings.serving), settings.processor)
    if not 0 < model.scale <= MAX_SCALE * 1.001:  # exp of a rounded logarithm
        raise SettingsError(f"{settings.model}: exp(logit_scale) is {model.scale:g}; a CLIP has at most {MAX_SCALE:g}")
    return ImageTextCosine(spec(name, settings), model, min(model.scale, MAX_SCALE) / DIVISOR)
