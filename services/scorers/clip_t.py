"""CLIP-T: does the image show what the prompt says? The cosine of CLIP's two towers, not scaled.

Hessel et al. 2021 without its factor 2.5 and its floor at 0; Ruiz et al. 2023, section 4.2: the concept's token in the
prompt becomes its class word.
"""

from __future__ import annotations

from typing import Literal

from services.models.settings import ClipModel
from services.scorers.base import ScorerSpec
from services.scorers.shared.image_text import ImageTextCosine
from services.settings_types import ScorerSettings


class ClipTSettings(ScorerSettings):
    """CLIP-T: cosine of CLIP's image and text features."""

    kind: Literal["clip_t"]
    model: ClipModel


def spec(name: str, settings: ClipTSettings) -> ScorerSpec:
    return ScorerSpec(name, ("image", "prompt"), -1.0, 1.0, "Ruiz et al. 2023, CLIP-T", "the image against its prompt")


def build(name: str, settings: ClipTSettings) -> ImageTextCosine:
    from services.models import clip

    return ImageTextCosine(spec(name, settings), clip.build(settings.model, settings.serving))
