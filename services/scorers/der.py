"""DER: does the image look like the concept's references? Sync-R1, eq. 32: DINOv2 cosine, the mean of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from services.scorers.base import ScorerSpec
from services.scorers.shared.references import ReferenceCosine
from services.settings_types import SingleModelSettings
from synod.contracts import Pixels


class Embedder(Protocol):
    def embed(self, images: Sequence[Pixels]) -> NDArray[np.float32]: ...


class DerSettings(SingleModelSettings):
    """DER (eq. 32): mean DINOv2 cosine to the references."""

    kind: Literal["der"]


def spec(name: str, settings: DerSettings) -> ScorerSpec:
    summary = "the image against the concept's references"
    return ScorerSpec(name, ("image", "references"), -1.0, 1.0, "Sync-R1, eq. 32", summary)


def build(name: str, settings: DerSettings) -> Der:
    from services.models import dinov2
    from services.models.cache import Device

    return Der(name, dinov2.load(settings.model, Device.of(settings.serving)), settings)


class Der(ReferenceCosine):
    def __init__(self, name: str, model: Embedder, settings: DerSettings) -> None:
        super().__init__(spec(name, settings), model.embed)
