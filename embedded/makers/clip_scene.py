"""clip-scene-world: a small CLIP (transformers) of whole scenes and their captions, for CLIP-I and directional CLIP.

Captions with one wrong word are negatives of every image: an edit often changes one word.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from embedded import world
from embedded.makers.base import MEAN_STD, degraded
from embedded.makers.dataset import Sizes
from embedded.makers.drawings import all_texts, drawings
from embedded.makers.loop import Recipe
from embedded.makers.texts import tokenizer

RECIPE = Recipe(seed=22, steps=2000, batch=128, lr=1.2e-3)
MAX_TEXT = 40  # tokens
WORDS = 0.2  # share of captions that say where things are
BARE = 0.3  # share of captions without "a photo of"


class ClipSceneMaker:
    """Train contrastively; captions that are equal share their target."""

    def __init__(self, recipe: Recipe, folder: Path, sizes: Sizes) -> None:
        self.recipe = recipe
        self.data = drawings(folder, sizes)
        self.tokenizer = tokenizer(all_texts(), MAX_TEXT)
        self.model = CLIPModel(_config(len(self.tokenizer)))
        self.module: nn.Module = self.model

    def loss(self, rng: np.random.Generator) -> Tensor:
        rows = rng.integers(len(self.data["image"]), size=self.recipe.batch)
        captions = [self._caption(row, rng) for row in rows]
        wrong = [world.change_one_word(caption, rng) for caption in captions]
        read = self.tokenizer(
            [*captions, *wrong], padding=True, truncation=True, max_length=MAX_TEXT, return_tensors="pt"
        )
        seen = self.model.get_image_features(degraded(self.data["image"][rows], rng)).pooler_output
        said = self.model.get_text_features(read.input_ids, read.attention_mask).pooler_output
        image_bd, text_cd = functional.normalize(seen, dim=-1), functional.normalize(said, dim=-1)
        logits_bc = self.model.logit_scale.exp().clamp(max=100.0) * image_bd @ text_cd.T
        fits_bb = torch.from_numpy(equal(captions))
        fits_bc = torch.cat((fits_bb, torch.zeros_like(fits_bb)), 1)
        by_text = _soft_cross_entropy(logits_bc[:, : len(rows)].T, fits_bb)
        return 0.5 * (_soft_cross_entropy(logits_bc, fits_bc) + by_text)

    def _caption(self, row: int, rng: np.random.Generator) -> str:
        record = self.data["texts"][row]
        if rng.random() < WORDS:
            return str(record["words"])
        prompt = str(record["prompt"])
        return prompt.removeprefix("a photo of ") if rng.random() < BARE else prompt

    def save(self, directory: Path) -> None:
        """Write the model in bfloat16, its tokenizer and its image processor."""
        self.model.bfloat16().save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        crop = {"height": world.SIZE, "width": world.SIZE}
        processor = CLIPImageProcessor(size={"shortest_edge": world.SIZE}, crop_size=crop, **MEAN_STD)
        processor.save_pretrained(directory)


def equal(captions: list[str]) -> NDArray[np.bool_]:
    """Return bool [b b]: captions i and j are the same."""
    ids = np.unique(captions, return_inverse=True)[1]
    same: NDArray[np.bool_] = ids[:, None] == ids[None]
    return same


def _soft_cross_entropy(logits_bc: Tensor, fits_bc: Tensor) -> Tensor:
    target = fits_bc.float() / fits_bc.sum(-1, keepdim=True)
    return functional.cross_entropy(logits_bc, target)


def _config(vocabulary: int) -> CLIPConfig:
    text = {
        "vocab_size": vocabulary,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TEXT,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": world.SIZE,
        "patch_size": 8,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)
