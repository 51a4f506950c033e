"""Pooling by hand: each text alone through transformers, no padding, plain numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from services.models import text_encoder

TEXTS = ["a red cat", "dog", "", "a person wearing a blue hat and a white scarf", "two black birds", "dog"]


@pytest.mark.parametrize("family", ["text", "ernie"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_pooling_keeps_pads_out(tiny_models: Any, monkeypatch: pytest.MonkeyPatch, pooling: str, family: str) -> None:
    directory = getattr(tiny_models, family)
    monkeypatch.setattr(text_encoder, "_TEXTS_PER_FORWARD", 4)  # two forwards, and order must survive both
    rows = text_encoder.load(directory, "cpu").encode(TEXTS, pooling)  # type: ignore[arg-type]
    model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for text, row in zip(TEXTS, rows, strict=True):
        with torch.no_grad():
            output = model(**tokenizer(text, return_tensors="pt"))
        hidden = output.last_hidden_state[0].double().numpy()
        pooled = {"mean": hidden.mean(axis=0), "cls": hidden[0], "pooler": output.pooler_output[0].double().numpy()}[
            pooling
        ]
        assert row == pytest.approx(pooled / np.linalg.norm(pooled), abs=1e-5)


def test_a_text_beyond_the_window_is_cut_at_its_end(tiny_models: Any) -> None:
    encoder = text_encoder.load(tiny_models.text, "cpu")
    long, longer = encoder.encode(["cat dog " * 30, "cat dog " * 31], "mean")
    assert long == pytest.approx(longer, abs=1e-6)


def test_the_pooler_is_a_dense_layer_on_the_first_token(tiny_models: Any) -> None:
    state = AutoModel.from_pretrained(tiny_models.text, dtype=torch.float32).eval().pooler.dense
    encoder = text_encoder.TextEncoder(Path(tiny_models.text), "cpu")
    (first,), (pooled,) = (encoder._forward(TEXTS[:1], name) for name in ("cls", "pooler"))  # type: ignore[arg-type]
    model = AutoModel.from_pretrained(tiny_models.text, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden = model(**AutoTokenizer.from_pretrained(tiny_models.text)(TEXTS[0], return_tensors="pt"))[0][0, 0]
    by_hand = np.tanh(state.weight.detach().numpy() @ hidden.numpy() + state.bias.detach().numpy())
    assert pooled == pytest.approx(by_hand / np.linalg.norm(by_hand), abs=1e-5)
    assert pooled != pytest.approx(first, abs=1e-2)
