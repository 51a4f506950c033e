"""CLIP features through open_clip: a model directory ('local-dir:'), a hub id ('hf-hub:..'), or a built-in name.

N pictures or texts, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import normalize

from services.models import weights
from services.models.cache import Device, frozen, like, shared
from synod.contracts import Pixels


class OpenClip:
    """Both towers with the model's own transform and tokenizer; rows have norm 1."""

    def __init__(
        self, name: str, pretrained: str | None, device: Device | str, weights_file: Path | None = None
    ) -> None:
        model, _, self._transform = open_clip.create_model_and_transforms(
            name, pretrained=pretrained, weights_only=True, load_weights=weights_file is None
        )
        if weights_file is not None:
            weights.load_into(model, weights.read(weights_file), weights_file)
        self._model: Any = frozen(model, device, "visual", "text" if hasattr(model, "text") else "transformer")
        self._tokenize: Callable[[list[str]], torch.Tensor] = open_clip.get_tokenizer(name)

    @torch.inference_mode()
    def image_features(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """[N D]; the pictures may differ in size."""
        pixels = torch.stack([self._transform(Image.fromarray(image)) for image in images])
        return _rows(self._model.encode_image(like(self._model, pixels)))

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[N D]."""
        return _rows(self._model.encode_text(self._tokenize(list(texts)).to(next(self._model.parameters()).device)))


def _rows(features: torch.Tensor) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = normalize(features.float(), dim=-1).cpu().numpy()
    return rows


def load(source: str, pretrained: str | None, device: Device | str) -> OpenClip:
    """A directory is shared per process by content; open_clip resolves and caches names and hub ids itself."""
    if Path(source).is_dir():
        return shared("open_clip", source, device, lambda folder: OpenClip(f"local-dir:{folder}", None, device))
    return OpenClip(source, pretrained, device)


def load_file(architecture: str, source: str, device: Device | str) -> OpenClip:
    """An architecture (a built-in name or a directory) with the weights of a file, shared per process by the file's
    content. Raises SettingsError when the file is missing, unsafe or of another architecture."""
    name = f"local-dir:{architecture}" if Path(architecture).is_dir() else architecture
    place = str(weights.file(source))
    return shared(f"open_clip {architecture}", place, device, lambda file: OpenClip(name, None, device, file))
