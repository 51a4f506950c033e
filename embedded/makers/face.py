"""face-world: a small ViT on 32-pixel face crops, metric learning on random people (for FER)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from embedded.makers.base import MEAN_STD, supervised_contrastive
from embedded.makers.crops import FACE_PADDING, FACE_SIZE
from embedded.makers.dataset import Sizes, faces, normalised
from embedded.makers.loop import Recipe

RECIPE = Recipe(seed=5, steps=1000, batch=128, lr=1.2e-3)
VIEWS = 4
TEMPERATURE = 0.1


class FaceMaker:
    """A batch has `batch` / 4 people with four faces each; margin -5 % to 35 %, offset up to 8 %."""

    def __init__(self, recipe: Recipe, folder: Path, sizes: Sizes) -> None:
        self.recipe = recipe
        self.data = faces(folder, sizes)
        self.model = ViTModel(
            ViTConfig(
                hidden_size=96,
                num_hidden_layers=4,
                num_attention_heads=3,
                intermediate_size=192,
                image_size=FACE_SIZE,
                patch_size=4,
            )
        )
        self.module: nn.Module = self.model

    def loss(self, rng: np.random.Generator) -> Tensor:
        stored = self.data["face"]
        people = rng.choice(len(stored), size=min(self.recipe.batch // VIEWS, len(stored)), replace=False)
        views = np.stack([rng.choice(stored.shape[1], VIEWS, replace=False) for _ in people])
        patches = torch.from_numpy(normalised(stored[people[:, None], views].reshape(-1, *stored.shape[2:])))
        embedding_bd = self.model(pixel_values=_cut(patches, rng)).pooler_output
        return supervised_contrastive(embedding_bd, torch.arange(len(people)).repeat_interleave(VIEWS), TEMPERATURE)

    def save(self, directory: Path) -> None:
        self.model.save_pretrained(directory)
        size = {"height": FACE_SIZE, "width": FACE_SIZE}
        ViTImageProcessor(do_resize=True, size=size, resample=2, **MEAN_STD).save_pretrained(directory)


def _cut(patches: Tensor, rng: np.random.Generator) -> Tensor:
    """Crop float [B 3 48 48] to [B 3 32 32]: widen and move the box, and mirror some, at random."""
    count = len(patches)
    theta = np.zeros((count, 2, 3), np.float32)
    theta[:, (0, 1), (0, 1)] = rng.uniform(0.95, 1.35, (count, 1)) * rng.uniform(0.94, 1.06, (count, 2)) / FACE_PADDING
    theta[:, :, 2] = rng.uniform(-0.08, 0.08, (count, 2))
    theta[:, 0, 0] *= rng.choice((-1.0, 1.0), count, p=(0.2, 0.8))
    grid = functional.affine_grid(torch.from_numpy(theta), [count, 3, FACE_SIZE, FACE_SIZE], align_corners=False)
    return functional.grid_sample(patches, grid, padding_mode="border", align_corners=False)
