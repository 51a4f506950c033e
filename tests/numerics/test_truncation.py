"""A text beyond the window is cut at its end and keeps its closing token; a tokenizer's own limit counts if it is less.

Held against shorter texts: one that fills the window gives what every longer one gives, one that is a word shorter does
not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.models import blip2, open_clip, text_encoder, transformers_clip

TEXT = "a red cat dog person bird wearing hat has left right above below two three sits on grass scarf with"
ENDS = 2  # tokens that open and close every text
FAMILIES: dict[str, tuple[int, Callable[[str], Callable[[Sequence[str]], NDArray[Any]]]]] = {  # window, what embeds
    "text": (24, lambda folder: lambda texts: text_encoder.load(folder, "cpu").encode(texts, "cls")),
    "blip2": (24, lambda folder: blip2.load(folder, "cpu").text_features),
    "clip": (16, lambda folder: transformers_clip.load(folder, "cpu").text_features),
    "open_clip": (16, lambda folder: open_clip.load(folder, None, "cpu").text_features),
}
TOKENIZERS = {"endless": 10**30, "short": 11}  # as many public BERT tokenizers have none
CASES = [(family, limit) for family in FAMILIES for limit in TOKENIZERS if (family, limit) != ("open_clip", "short")]


def text(words: int) -> str:
    return " ".join(islice(cycle(TEXT.split()), words))


@pytest.mark.parametrize(("family", "limit"), CASES)
def test_what_lies_beyond_the_window_does_not_count(tiny_models: Any, tmp_path: Path, family: str, limit: str) -> None:
    folder = shutil.copytree(getattr(tiny_models, family), tmp_path / "model")
    for file in folder.rglob("tokenizer_config.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": TOKENIZERS[limit]}))
    window, load = FAMILIES[family]
    most = min(window, TOKENIZERS[limit]) - ENDS
    full, *longer, shorter = load(str(folder))([text(n) for n in (most, most + 1, most + 2, 3 * most, most - 1)])
    for one in longer:
        assert one == pytest.approx(full, abs=1e-5)
    assert not np.allclose(shorter, full, atol=1e-3), "the last word within the window counts"


def test_the_matching_head_cuts_as_the_contrastive_one_does(tiny_models: Any, photographs: dict[str, Any]) -> None:
    most = FAMILIES["blip2"][0] - ENDS
    texts = [text(n) for n in (most, most + 1, 3 * most, most - 1)]
    found = blip2.load(tiny_models.blip2, "cpu").match_probabilities([photographs["cat"]] * len(texts), texts)
    assert found[1:3] == pytest.approx(found[0], abs=1e-5)
    assert found[3] != pytest.approx(found[0], abs=1e-5)
