"""BLIP-2's contrastive (ITC) features and matching (ITM) head, through Blip2ForImageTextRetrieval.

Shapes: N images or texts, Q queries, L tokens, D projection width. Li et al. 2023, section 3.1.
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

from services.models import pretrained
from services.models.cache import Device, shared
from services.models.images import pixel_values
from services.models.tokens import TextTokenizer
from synod.contracts import Pixels


class Blip2:
    """The two towers apart, so that a prompt that many images share is read once. Features have norm 1."""

    def __init__(self, folder: Path, device: Device | str) -> None:
        processor: Any = Blip2Processor.from_pretrained(folder)
        self._images, self._tokenizer = processor.image_processor, TextTokenizer(processor.tokenizer)
        self._model: Any = pretrained.load(Blip2ForImageTextRetrieval, folder, device, "vision_model", "qformer")
        window = self._model.config.qformer_config.max_position_embeddings
        self._max_tokens = min(self._tokenizer.model_max_length, window)

    @torch.inference_mode()
    def image_features(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """Return [N Q D]: one normalised vector per query."""
        model = self._model
        patches = self._patches(images)
        queries = model.qformer(
            query_embeds=model.query_tokens.expand(len(images), -1, -1),
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:-1], dtype=torch.long, device=patches.device),
        ).last_hidden_state
        return _features(model.vision_projection, queries)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return [N D]: the first token's projection. Texts longer than the Q-Former's window are cut at its end."""
        model = self._model
        tokens = self._tokens(texts)
        hidden = model.qformer(
            query_embeds=model.embeddings(input_ids=tokens["input_ids"]),
            query_length=0,
            attention_mask=tokens["attention_mask"],
        ).last_hidden_state
        return _features(model.text_projection, hidden[:, 0])

    @torch.inference_mode()
    def match_probabilities(self, images: Sequence[Pixels], texts: Sequence[str]) -> NDArray[np.float32]:
        """Return [N]: the two-way head's match probability of image i and text i, logits averaged over queries.

        Queries and words attend to one another, so nothing is shared between pairs. Texts are cut as above.
        """
        model = self._model
        patches, tokens = self._patches(images), self._tokens(texts)
        queries = model.query_tokens.expand(len(images), -1, -1)
        seen = torch.ones(queries.shape[:2], dtype=torch.long, device=queries.device)
        hidden = model.qformer(
            query_embeds=model.embeddings(input_ids=tokens["input_ids"], query_embeds=queries),
            query_length=queries.shape[1],
            attention_mask=torch.cat([seen, tokens["attention_mask"]], dim=1),
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:-1], dtype=torch.long, device=patches.device),
        ).last_hidden_state[:, : queries.shape[1]]
        logits = model.itm_head(hidden.to(model.itm_head.weight.dtype)).float().mean(dim=1)  # [N 2]
        probabilities: NDArray[np.float32] = logits.softmax(dim=-1)[:, 1].cpu().numpy()
        return probabilities

    def _patches(self, images: Sequence[Pixels]) -> Any:
        values = pixel_values(self._images, images, self._model)
        return self._model.vision_model(pixel_values=values).last_hidden_state

    def _tokens(self, texts: Sequence[str]) -> Any:
        return self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._model.device)


def _features(projection: torch.nn.Module, hidden: torch.Tensor) -> NDArray[np.float32]:
    projected = projection(hidden.to(next(projection.parameters()).dtype)).float()
    features: NDArray[np.float32] = normalize(projected, dim=-1).cpu().numpy()
    return features


def load(source: str, device: Device | str) -> Blip2:
    """Return the retrieval model of a model directory or hub id, shared per process."""
    return shared("blip2", source, device, lambda folder: Blip2(folder, device))
