"""Pooling by hand: each text alone through transformers, no padding, plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from services.models import text_encoder

TEXTS = ["a red cat", "dog", "", "a person wearing a blue hat and a white scarf", "two black birds", "dog"]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling_keeps_pads_out(tiny_models: Any, monkeypatch: pytest.MonkeyPatch, pooling: str) -> None:
    monkeypatch.setattr(text_encoder, "_TEXTS_PER_FORWARD", 4)  # two forwards, and order must survive both
    rows = text_encoder.load(tiny_models.text, "cpu").encode(TEXTS, pooling)  # type: ignore[arg-type]
    model = AutoModel.from_pretrained(tiny_models.text, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.text)
    for text, row in zip(TEXTS, rows, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double().numpy()
        pooled = hidden.mean(axis=0) if pooling == "mean" else hidden[0]
        assert row == pytest.approx(pooled / np.linalg.norm(pooled), abs=1e-5)


def test_a_text_beyond_the_window_is_cut_at_its_end(tiny_models: Any) -> None:
    encoder = text_encoder.load(tiny_models.text, "cpu")
    long, longer = encoder.encode(["cat dog " * 30, "cat dog " * 31], "mean")
    assert long == pytest.approx(longer, abs=1e-6)
