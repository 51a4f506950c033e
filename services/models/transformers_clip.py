"""CLIP features through transformers' CLIPModel (Radford et al. 2021). N images or texts, D width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from services.models import pretrained
from services.models.cache import Device, shared
from services.models.images import pixel_values
from services.models.tokens import TextTokenizer
from synod.contracts import Pixels


class TransformersClip:
    """Both towers; rows have norm 1. `scale` is exp(logit_scale), what training multiplied cosines by."""

    def __init__(self, folder: Path, processor: str | Path, device: Device | str) -> None:
        self.scale = float(pretrained.tensor(folder, "logit_scale").float().exp())  # no narrower dtype rounds it
        self._model: Any = pretrained.load(CLIPModel, folder, device, "vision_model", "text_model")
        self._processor: Any = AutoImageProcessor.from_pretrained(processor)
        self._tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(processor, padding_side="right"))
        window = self._model.config.text_config.max_position_embeddings
        self._max_tokens = min(self._tokenizer.model_max_length, window)

    @torch.inference_mode()
    def image_features(self, images: Iterable[Pixels]) -> NDArray[np.float32]:
        """Return [N D]; the images may differ in size."""
        pixels = pixel_values(self._processor, list(images), self._model)
        return _rows(self._model.get_image_features(pixel_values=pixels).pooler_output)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return [N D]. Texts longer than the window (77 tokens in the published models) are cut at its end."""
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._model.device)
        features = self._model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
        return _rows(features.pooler_output)


def _rows(features: torch.Tensor) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = normalize(features.float(), dim=-1).cpu().numpy()
    return rows


def load(source: str, device: Device | str, processor: str | None = None) -> TransformersClip:
    """Return the model of a directory or hub id, shared per process.

    `processor` is another source of the image processor and the tokenizer. Raises SettingsError if the weights are not
    a complete CLIPModel.
    """
    family = f"transformers_clip {processor or ''}"
    return shared(family, source, device, lambda folder: TransformersClip(folder, processor or folder, device))
