"""dinov2-world: a small DINOv2, metric learning on random individuals of every class, for DER.

Images of one individual differ in place, background, pose and accessories, so that the embedding ignores these.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from embedded.makers.base import MEAN_STD, degraded, pick_individuals, supervised_contrastive
from embedded.makers.dataset import Sizes, identities
from embedded.makers.loop import Recipe

RECIPE = Recipe(seed=2, steps=1200, batch=112, lr=1.2e-3)
VIEWS = 4
KINDS = 3
TEMPERATURE = 0.1


class Dinov2Maker:
    """A batch has `batch` / 4 individuals of three classes with four views each."""

    def __init__(self, recipe: Recipe, folder: Path, sizes: Sizes) -> None:
        self.recipe = recipe
        self.data = identities(folder, sizes)
        self.model = Dinov2Model(
            Dinov2Config(
                hidden_size=128, num_hidden_layers=4, num_attention_heads=4, mlp_ratio=2, image_size=64, patch_size=8
            )
        )
        self.module: nn.Module = self.model

    def loss(self, rng: np.random.Generator) -> Tensor:
        individuals = pick_individuals(self.data["kind"], self.recipe.batch // VIEWS, KINDS, rng)
        views = np.stack([rng.choice(self.data["image"].shape[1], VIEWS, replace=False) for _ in individuals])
        images = self.data["image"][individuals[:, None], views].reshape(-1, *self.data["image"].shape[2:])
        embedding_bd = self.model(pixel_values=degraded(images, rng)).last_hidden_state[:, 0]
        return supervised_contrastive(
            embedding_bd, torch.arange(len(individuals)).repeat_interleave(VIEWS), TEMPERATURE
        )

    def save(self, directory: Path) -> None:
        self.model.save_pretrained(directory)
        size = {"height": 64, "width": 64}
        BitImageProcessor(
            do_resize=True, size=size, do_center_crop=False, do_convert_rgb=True, resample=3, **MEAN_STD
        ).save_pretrained(directory)
