"""clip-world: a small open_clip model of object crops and colour captions, for GenEval's colours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from embedded import world
from embedded.makers.base import MEAN_STD
from embedded.makers.crops import COLOR_SIZE
from embedded.makers.dataset import COLOR_NAMES, Sizes, colors, normalised
from embedded.makers.loop import Recipe
from embedded.makers.texts import COLOR_TEMPLATES, corpus, tokenizer

RECIPE = Recipe(seed=4, steps=1500, batch=192, lr=1.5e-3)
CONTEXT = 16
KIND_CAPTION = "a photo of a {kind}"


class ClipMaker:
    """Train contrastively on crops and captions; captions that fit a crop equally share its target."""

    def __init__(self, recipe: Recipe, folder: Path, sizes: Sizes) -> None:
        self.recipe = recipe
        self.data = colors(folder, sizes)
        self.tokenizer = tokenizer(corpus(), CONTEXT)
        self.config = _config(len(self.tokenizer), self.tokenizer.sep_token_id)
        self.model = open_clip.CLIP(**self.config)
        self.module: nn.Module = self.model

    def loss(self, rng: np.random.Generator) -> Tensor:
        rows = rng.integers(len(self.data["crop"]), size=self.recipe.batch)
        color, kind = self.data["color"][rows].astype(int), self.data["kind"][rows].astype(int)
        template = rng.integers(len(COLOR_TEMPLATES) + 1, size=len(rows))
        texts = [self._caption(*one) for one in zip(template, color, kind, strict=True)]
        crops = torch.from_numpy(normalised(self.data["crop"][rows]))
        image_bd = self.model.encode_image(crops, normalize=True)
        text_bd = self.model.encode_text(self._ids(texts), normalize=True)
        logits_bb = self.model.logit_scale.exp().clamp(max=100.0) * image_bd @ text_bd.T
        fits_bb = torch.from_numpy(_fits(template, color, kind))
        return 0.5 * (_soft_cross_entropy(logits_bb, fits_bb) + _soft_cross_entropy(logits_bb.T, fits_bb.T))

    def _caption(self, template: int, color: int, kind: int) -> str:
        pattern = (*COLOR_TEMPLATES, KIND_CAPTION)[template]
        return pattern.format(color=COLOR_NAMES[color], kind=world.CLASSES[kind])

    def _ids(self, texts: list[str]) -> Tensor:
        encoded = self.tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
        ids: Tensor = encoded.input_ids
        return ids

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        preprocess = {"mean": MEAN_STD["image_mean"], "std": MEAN_STD["image_std"], "resize_mode": "squash"}
        config = {"model_cfg": self.config, "preprocess_cfg": {**preprocess, "interpolation": "bicubic"}}
        (directory / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(
            {key: value.contiguous() for key, value in self.model.state_dict().items()},
            directory / "open_clip_model.safetensors",
        )
        self.tokenizer.save_pretrained(directory)


def _config(vocabulary: int, end: int) -> dict[str, Any]:
    return {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": COLOR_SIZE,
            "layers": 3,
            "width": 96,
            "head_width": 32,
            "patch_size": 8,
            "mlp_ratio": 2.0,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": vocabulary,
            "width": 64,
            "heads": 2,
            "layers": 2,
            "mlp_ratio": 2.0,
            "pool_type": "eos",
            "eos_id": end,
            "hf_tokenizer_name": "clip-world",
        },
    }


def _fits(template: NDArray[Any], color: NDArray[Any], kind: NDArray[Any]) -> NDArray[np.bool_]:
    """Return bool [b b]: caption j is true of crop i.

    The last template names only a class, the one before only a colour.
    """
    same_color, same_kind = color[:, None] == color[None], kind[:, None] == kind[None]
    only_color, only_kind = template == len(COLOR_TEMPLATES) - 1, template == len(COLOR_TEMPLATES)
    fits: NDArray[np.bool_] = (same_color | only_kind[None]) & (same_kind | only_color[None])
    return fits


def _soft_cross_entropy(logits_bb: Tensor, fits_bb: Tensor) -> Tensor:
    target = fits_bb.float() / fits_bb.sum(-1, keepdim=True)
    return functional.cross_entropy(logits_bb, target)
