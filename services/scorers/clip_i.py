"""CLIP-I: does the image look like the references? The cosine of CLIP image features, the mean of several.

The metric of personalised generation (Ruiz et al. 2023, section 4.2; UniCTokens), and UniRL-Zero's cycle consistency
where the one reference is the image before the edit and the scored one went forth and back.
"""

from __future__ import annotations

from typing import Literal

from services.models.settings import ClipModel
from services.scorers.base import ScorerSpec
from services.scorers.shared.references import ReferenceCosine
from services.settings_types import ScorerSettings


class ClipISettings(ScorerSettings):
    """CLIP-I: mean cosine of CLIP image features to the references."""

    kind: Literal["clip_i"]
    model: ClipModel


def spec(name: str, settings: ClipISettings) -> ScorerSpec:
    return ScorerSpec(
        name, ("image", "references"), -1.0, 1.0, "Ruiz et al. 2023, CLIP-I", "the image against references"
    )


def build(name: str, settings: ClipISettings) -> ReferenceCosine:
    from services.models import clip

    model = clip.build(settings.model, settings.serving)
    return ReferenceCosine(spec(name, settings), model.image_features)
