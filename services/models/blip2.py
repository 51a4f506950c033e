"""BLIP-2's image-text contrastive (ITC) features, through Blip2ForImageTextRetrieval.

Shapes: N pictures or texts, Q queries, L tokens, D projection width. Li et al. 2023, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize
from transformers import Blip2ForImageTextRetrieval, Blip2Processor

from services.models.cache import Device, frozen, shared
from services.models.images import pixel_values
from synod.contracts import Pixels


class Blip2:
    """The two towers apart, so that a prompt that many pictures share is read once. Features have norm 1."""

    def __init__(self, folder: Path, device: Device | str) -> None:
        processor: Any = Blip2Processor.from_pretrained(folder)
        self._images, self._tokenizer = processor.image_processor, processor.tokenizer
        self._model: Any = frozen(
            Blip2ForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32), device, "vision_model", "qformer"
        )
        window = self._model.config.qformer_config.max_position_embeddings
        self._max_tokens = min(self._tokenizer.model_max_length, window)

    @torch.inference_mode()
    def image_features(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """[N Q D]: one normalised vector per query."""
        model = self._model
        patches = model.vision_model(pixel_values=pixel_values(self._images, images, model)).last_hidden_state
        queries = model.qformer(
            query_embeds=model.query_tokens.expand(len(images), -1, -1),
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:-1], dtype=torch.long, device=patches.device),
        ).last_hidden_state
        return _features(model.vision_projection, queries)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[N D]: the first token's projection. Texts longer than the Q-Former's window are cut at its end."""
        model = self._model
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(model.device)
        hidden = model.qformer(
            query_embeds=model.embeddings(input_ids=tokens["input_ids"]),
            query_length=0,
            attention_mask=tokens["attention_mask"],
        ).last_hidden_state
        return _features(model.text_projection, hidden[:, 0])


def _features(projection: torch.nn.Module, hidden: torch.Tensor) -> NDArray[np.float32]:
    projected = projection(hidden.to(next(projection.parameters()).dtype)).float()
    features: NDArray[np.float32] = normalize(projected, dim=-1).cpu().numpy()
    return features


def load(source: str, device: Device | str) -> Blip2:
    """The retrieval model of a model directory or hub id, shared per process."""
    return shared("blip2", source, device, lambda folder: Blip2(folder, device))
