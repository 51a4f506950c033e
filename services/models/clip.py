"""The CLIP protocol (Radford et al. 2021), and which family a settings' `model` table means. No torch here.

N images or texts, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.scorer_settings import ClipModel, ServingSettings
from synod.contracts import Pixels


class Clip(Protocol):
    """Two towers with their own preparation; rows have norm 1, texts beyond the window are cut at its end."""

    def image_features(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """[N D]; the images may differ in size."""
        ...

    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[N D]."""
        ...


def build(model: ClipModel, serving: ServingSettings) -> Clip:
    """The model of a settings' table, shared per process."""
    from services.models.cache import Device

    if model.family == "open_clip":
        from services.models import open_clip

        return open_clip.load(model.model, model.pretrained, Device.of(serving))
    from services.models import transformers_clip

    return transformers_clip.load(model.model, Device.of(serving))
