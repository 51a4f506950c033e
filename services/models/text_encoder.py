"""Sentence embeddings from any encoder that AutoModel loads (ERNIE, MiniLM, BERT).

Shapes: N texts, L tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from services.models import pretrained
from services.models.cache import Device, shared
from services.models.tokens import TextTokenizer

Pooling = Literal["mean", "cls", "pooler"]
_TEXTS_PER_FORWARD = 256


class TextEncoder:
    """`encode` pools the last layer: the mean over the tokens that are not padding, the first token's vector (`cls`),
    or that through the model's own dense layer and tanh (`pooler`); rows have norm 1."""

    def __init__(self, folder: Path, device: Device | str) -> None:
        self._tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(folder, padding_side="right"))
        self._model: Any = pretrained.load(AutoModel, folder, device, optional="pooler", heads=True)
        self._max_tokens = min(self._tokenizer.model_max_length, self._model.config.max_position_embeddings)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], pooling: Pooling) -> NDArray[np.float32]:
        """Return [N D], L2-normalised. Texts longer than the model's window are cut at its end."""
        shortest_first = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding in each forward
        rows: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(texts)
        for start in range(0, len(texts), _TEXTS_PER_FORWARD):
            chunk = shortest_first[start : start + _TEXTS_PER_FORWARD]
            for i, row in zip(chunk, self._forward([texts[i] for i in chunk], pooling), strict=True):
                rows[i] = row
        return np.stack(rows)

    def _forward(self, texts: list[str], pooling: Pooling) -> NDArray[np.float32]:
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._model.device)
        output = self._model(**tokens)
        hidden: torch.Tensor = output.last_hidden_state.float()  # [N L D]
        if pooling == "pooler":
            if getattr(output, "pooler_output", None) is None:
                raise ValueError("pooling = 'pooler': this model has no pooler; take 'mean' or 'cls'")
            pooled = output.pooler_output.float()
        elif pooling == "cls":
            pooled = hidden[:, 0]
        else:
            mask = tokens["attention_mask"].unsqueeze(-1).float()
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        normalised: NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return normalised


def load(source: str, device: Device | str) -> TextEncoder:
    """Return the encoder of a model directory or hub id, shared per process."""
    return shared("text_encoder", source, device, lambda folder: TextEncoder(folder, device))
