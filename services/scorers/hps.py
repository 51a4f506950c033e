"""HPS v2: would people prefer this image for the prompt? The cosine of an open_clip ViT-H-14 tuned on their choices.

Wu et al. 2023, section 4, without the factor 100 of its tables.
"""

from __future__ import annotations

from typing import Literal

from services.scorers.base import ScorerSpec
from services.scorers.shared.image_text import ImageTextCosine
from services.settings_types import ModelSource, ScorerSettings


class HpsSettings(ScorerSettings):
    """HPS v2: an open_clip `architecture` (a name or a directory) with the weights of a file."""

    kind: Literal["hps"]
    architecture: ModelSource = "ViT-H-14"
    weights: ModelSource


def spec(name: str, settings: HpsSettings) -> ScorerSpec:
    summary = "human preference for the image, given the prompt"
    return ScorerSpec(name, ("image", "prompt"), -1.0, 1.0, "Wu et al. 2023, HPS v2", summary)


def build(name: str, settings: HpsSettings) -> ImageTextCosine:
    """Load the models. Raises SettingsError for a weights file that is missing, unsafe or of another architecture."""
    from services.models import open_clip
    from services.models.cache import Device

    return ImageTextCosine(
        spec(name, settings), open_clip.load_file(settings.architecture, settings.weights, Device.of(settings.serving))
    )
