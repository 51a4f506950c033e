"""Build the CLIP model (Radford et al. 2021) that a settings' `model` table names."""

from __future__ import annotations

from services.models.cache import Device
from services.models.settings import ClipModel
from services.models.types import Clip
from services.settings_types import ServingSettings


def build(model: ClipModel, serving: ServingSettings) -> Clip:
    """Return the model, shared by the scorers of a process."""
    if model.family == "open_clip":
        from services.models import open_clip

        return open_clip.load(model.model, model.pretrained, Device.of(serving))
    from services.models import transformers_clip

    return transformers_clip.load(model.model, Device.of(serving))
