"""DINOv2 image embeddings: the class token after the final LayerNorm (Oquab et al. 2023). N images, D width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoImageProcessor, Dinov2Model

from services.models import pretrained
from services.models.cache import Device, shared
from services.models.images import pixel_values
from synod.contracts import Pixels


class Dinov2:
    """`embed` resizes and crops with the model's own processor; rows have norm 1."""

    def __init__(self, folder: Path, device: Device | str) -> None:
        self._processor: Any = AutoImageProcessor.from_pretrained(folder)
        self._model: Any = pretrained.load(Dinov2Model, folder, device)

    @torch.inference_mode()
    def embed(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """Return [N D], L2-normalised."""
        hidden = self._model(pixel_values=pixel_values(self._processor, images, self._model)).last_hidden_state
        rows: NDArray[np.float32] = torch.nn.functional.normalize(hidden[:, 0].float(), dim=-1).cpu().numpy()
        return rows


def load(source: str, device: Device | str) -> Dinov2:
    """Return the model of a directory or hub id, shared per process."""
    return shared("dinov2", source, device, lambda folder: Dinov2(folder, device))
