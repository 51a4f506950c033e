"""Build the object detector that a settings' `detector` table names."""

from __future__ import annotations

from services.models import mask2former, semantic
from services.models.cache import Device
from services.models.settings import DetectorSettings
from services.models.types import Detector


def build(settings: DetectorSettings, device: Device | str) -> Detector:
    """Return the detector; scorers of a process share its model."""
    if settings.family == "mask2former":
        return mask2former.load(settings.model, device)
    return semantic.load(settings.model, device)
