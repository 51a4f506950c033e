"""magvit-world: the tokenizer of the drawn world, 64 x 64 pixels <-> 8 x 8 tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedded.makers.dataset import Sizes, normalised, scenes
from embedded.makers.loop import Recipe
from trainer.policy.magvit import Magvit, MagvitConfig

RECIPE = Recipe(seed=6, steps=4000, batch=16, lr=1.5e-3, weight_decay=0.01)
CONFIG = MagvitConfig(16, 12, (1, 2, 4, 6), (1, 1, 2, 2), (1, 2, 4, 6), (1, 1, 2, 2), norm_groups=8)
FOREGROUND = 3.0  # a pixel of a drawn thing counts this often: backgrounds are most of a picture and easy
COMMIT, ENTROPY, DECORRELATE = 0.1, 0.05, 0.5


class MagvitMaker:
    """Absolute and squared error of the reconstruction; LFQ's commitment and entropy terms, taken bit by bit.

    The entropy of a code's distribution is the sum over its independent bits; the codebook's own entropy (Yu et al.
    2024, eq. 5) is replaced by that of its bits and a penalty on their correlation, which need no table of all codes.
    """

    def __init__(self, recipe: Recipe, folder: Path, sizes: Sizes) -> None:
        self.recipe = recipe
        self.data = scenes(folder, sizes)
        self.model = Magvit(CONFIG).to(memory_format=torch.channels_last)
        self.module: nn.Module = self.model

    def loss(self, rng: np.random.Generator) -> Tensor:
        rows = rng.integers(len(self.data["image"]), size=self.recipe.batch)
        image, label = self.data["image"][rows], self.data["label"][rows]
        if rng.random() < 0.5:
            image, label = image[:, :, ::-1], label[:, :, ::-1]
        pixels = torch.from_numpy(normalised(image)).to(memory_format=torch.channels_last)
        weight = 1.0 + (FOREGROUND - 1.0) * torch.from_numpy((label > 0).astype(np.float32))[:, None]
        with torch.autocast("cpu", torch.bfloat16):
            z = self.model.encoder(pixels).float()
            sign = torch.where(z > 0, 1.0, -1.0)
            decoded = self.model.decoder(z + (sign - z).detach()).float()
        error = decoded - pixels
        drawn: Tensor = ((error.abs() + 2.0 * error.square()) * weight).sum() / (weight.sum() * 3)
        return drawn + COMMIT * functional.mse_loss(z, sign.detach()) + _usage(z)

    def save(self, directory: Path) -> None:
        self.model.save(directory)


def _usage(z: Tensor) -> Tensor:
    """Every bit sure of itself in each picture, fair over all pictures, and independent of the others."""
    bits = z.transpose(0, 1).flatten(1)
    chance = torch.sigmoid(4.0 * bits)
    sure, fair = _entropy(chance).mean(), _entropy(chance.mean(1)).mean()
    soft = 2 * chance - 1
    soft = soft - soft.mean(1, keepdim=True)
    together = soft @ soft.T / soft.shape[1]
    off = together - torch.diag(torch.diag(together))
    usage: Tensor = ENTROPY * (sure - fair) + DECORRELATE * off.square().mean()
    return usage


def _entropy(chance: Tensor) -> Tensor:
    chance = chance.clamp(1e-6, 1 - 1e-6)
    return -(chance * chance.log() + (1 - chance) * (1 - chance).log())
