"""The Maker protocol of the shared training loop, and functions that several makers use.

Suffixes give shapes: b batch, d width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from embedded.makers.augment import degrade, shift
from embedded.makers.dataset import normalised
from embedded.makers.loop import Part, Recipe

MEAN_STD = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


class Maker(Protocol):
    """A model to train: `module` has all parameters and heads; `save` writes the model directory."""

    recipe: Recipe
    module: nn.Module

    def loss(self, rng: np.random.Generator) -> Tensor | list[Part]: ...

    def save(self, directory: Path) -> None: ...


def degraded(images: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """Augment and normalise images: uint8 [B H W 3] -> float32 [B 3 H W]."""
    moved = [shift(image, int(rng.integers(-2, 3)), int(rng.integers(-2, 3))) for image in images]
    return torch.from_numpy(normalised(np.stack([degrade(image, rng) for image in moved])))


def pick_individuals(kind: NDArray[np.uint8], count: int, kinds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Pick `count` individuals of `kinds` random classes; those of the same class are hard negatives."""
    chosen = rng.choice(np.unique(kind), size=kinds, replace=False)
    pools = [np.flatnonzero(kind == one) for one in chosen]
    shares = [len(part) for part in np.array_split(np.arange(count), kinds)]
    return np.concatenate(
        [rng.choice(p, size=min(n, len(p)), replace=False) for p, n in zip(pools, shares, strict=True)]
    )


def supervised_contrastive(embedding_bd: Tensor, identity_b: Tensor, temperature: float) -> Tensor:
    """SupCon loss, L_out of Khosla et al. 2020 (eq. 2). Positives are other images of the same individual."""
    unit_bd = functional.normalize(embedding_bd, dim=-1)
    self_bb = torch.eye(len(unit_bd), dtype=torch.bool)
    logits_bb = (unit_bd @ unit_bd.T / temperature).masked_fill(self_bb, -1e9)
    logp_bb = logits_bb.log_softmax(dim=-1)
    same_bb = (identity_b[:, None] == identity_b[None, :]) & ~self_bb
    return -(logp_bb * same_bb).sum(-1).div(same_bb.sum(-1).clamp(min=1)).mean()
