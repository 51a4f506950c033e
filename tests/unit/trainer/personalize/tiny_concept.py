"""A tiny Show-o with room for concept tokens, and a concept of a few random images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synod.contracts import Pixels
from synod.images import encode_png
from tests.unit.trainer.tiny_show_o import make_show_o
from trainer.personalize.tokens import Rows
from trainer.policy.show_o.magvit import Magvit
from trainer.policy.show_o.policy import ShowO
from trainer.policy.show_o.vocabulary import ConceptTokens, Vocabulary

LIMIT = 40
DOT = ConceptTokens("<dot>", 3, 2, 2)
SUE = ConceptTokens("<sue>", 2, 1)
WIDTH = 64


def make_policy(vocab: Vocabulary, vq: Magvit, **options: Any) -> ShowO:
    """Return the tiny Show-o with text blocks of LIMIT + 1."""
    policy = make_show_o(replace(vocab, max_text_length=LIMIT), vq, **options)
    policy.config = replace(policy.config, max_text_length=LIMIT)
    return policy


def make_rows(count: int, seed: int = 0, width: int = WIDTH) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return Rows(*(torch.randn(shape, generator=generator) for shape in ((count, width), (count, width), (count,))))


def noise(seed: int, height: int = 8, width: int = 8) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_concept(folder: Path, kind: str = "animal") -> Path:
    """Write a concept with 3 images, cropped ones, 2 random ones, and questions; return its folder."""
    for place, name in ((0, "train"), (10, "cropped"), (20, "random_images")):
        (folder / name).mkdir(parents=True)
        for i in range(3 if place < 20 else 2):
            (folder / name / f"{i}.png").write_bytes(encode_png(noise(place + i, 10, 12)))
    info = {"name": "<dot>", "kind": kind, "class": "dog", "info": "<dot> is a red dog.", "extra_info": ["a", "b"]}
    (folder / "info.json").write_text(json.dumps(info))
    talks = {"0.png": [{"query": "what color is <dot> ?", "answer": "<dot> is red ."}]}
    talks["text_only"] = [{"query": "what has <dot> ?", "answer": "a hat ."}]
    (folder / "conversations.json").write_text(json.dumps(talks))
    asked = [{"query": "is <dot> on a photo ?", "answer": "Yes."}, {"query": "is a dog <dot> ?", "answer": "Yes."}]
    (folder / "positive_recognitions.json").write_text(json.dumps(asked))
    return folder
