"""magvit-world: the image tokenizer of the synthetic world, 64 x 64 pixels <-> 8 x 8 tokens.

Trained in two parts: the whole tokenizer, then the decoder alone on the codes of the finished encoder. The second part
adds a perceptual loss, so that small objects keep a sharp shape instead of an average one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SegformerForSemanticSegmentation

from embedded import world
from embedded.makers.dataset import Sizes, normalised, scenes
from embedded.makers.loop import Recipe
from trainer.policy.show_o.magvit import Magvit, MagvitConfig

DECODER_RECIPE = Recipe(seed=8, steps=1600, batch=8, lr=8e-4, weight_decay=0.01)
RECIPE = Recipe(seed=6, steps=10_000, batch=8, lr=1.2e-3, weight_decay=0.01)
CONFIG = MagvitConfig(16, 12, (1, 2, 4, 6), (1, 1, 2, 2), (1, 2, 4, 6), (1, 1, 2, 2), norm_groups=8)
FOREGROUND = 4.0  # weight of an object's pixels: the background is most of an image, and easy
COMMIT, ENTROPY, DECORRELATE, LABELS = 0.1, 0.05, 0.5, 0.3
PERCEPTUAL = 0.5


class MagvitMaker:
    """Train the tokenizer on reconstruction, pixel labels, and LFQ's commitment and entropy per bit.

    The labels are predicted from the decoder's last features, so that codes carry object classes early. The entropy
    of a code's distribution is the sum over its independent bits; the codebook's own entropy (Yu et al. 2024, eq. 5) is
    replaced by that of its bits and a penalty on their correlation, which need no table of all codes.
    """

    def __init__(self, recipe: Recipe, folder: Path, sizes: Sizes) -> None:
        self.recipe = recipe
        self.data = scenes(folder, sizes)
        self.model = Magvit(CONFIG).to(memory_format=torch.channels_last)
        self.labels = nn.Conv2d(CONFIG.channels * CONFIG.decoder_multipliers[0], len(world.LABELS), 1)
        self.module: nn.Module = nn.ModuleDict({"model": self.model, "labels": self.labels})

    def loss(self, rng: np.random.Generator) -> Tensor:
        pixels, label = _batch(self.data, self.recipe.batch, rng)
        with torch.autocast("cpu", torch.bfloat16):
            z = self.model.encoder(pixels).float()
            sign = torch.where(z > 0, 1.0, -1.0)
            features = self.model.decoder.features(z + (sign - z).detach())
            decoded, predicted = self.model.decoder.conv_out(features).float(), self.labels(features).float()
        weight = _weight(label)
        wrong = functional.cross_entropy(predicted, label, reduction="none")
        commit = functional.mse_loss(z, sign.detach())
        return weighted_error(decoded, pixels, weight) + LABELS * _mean(wrong, weight) + COMMIT * commit + _usage(z)

    def save(self, directory: Path) -> None:
        self.model.save(directory)


class DecoderMaker:
    """Train the decoder on reconstruction error and the distance in the detector's features."""

    def __init__(self, recipe: Recipe, folder: Path, sizes: Sizes, tokenizer: Path, detector: Path) -> None:
        self.recipe = recipe
        self.data = scenes(folder, sizes)
        self.model = Magvit.load(tokenizer).to(memory_format=torch.channels_last)
        self.module: nn.Module = self.model.decoder.requires_grad_(True)
        self.detector = frozen_detector(detector)

    def loss(self, rng: np.random.Generator) -> Tensor:
        pixels, label = _batch(self.data, self.recipe.batch, rng)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                sign = torch.where(self.model.encoder(pixels).float() > 0, 1.0, -1.0)
            decoded = self.model.decoder(sign).float()
            distance = perceptual_distance(self.detector, decoded, pixels)
        return weighted_error(decoded, pixels, _weight(label)) + PERCEPTUAL * distance

    def save(self, directory: Path) -> None:
        self.model.save(directory)


def frozen_detector(directory: Path) -> nn.Module:
    """Return the detector's encoder, whose features `perceptual_distance` compares."""
    found: nn.Module = SegformerForSemanticSegmentation.from_pretrained(directory).segformer
    return found.requires_grad_(False).eval()


def perceptual_distance(detector: nn.Module, decoded: Tensor, pixels: Tensor) -> Tensor:
    """Return the distance of two batches of images in the detector's features, all stages together.

    It is LPIPS (Zhang et al. 2018) with unit weights; its usual VGG was trained on photographs, the detector on this
    world.
    """
    with torch.no_grad():
        target = _features(detector, pixels)
    found = _features(detector, decoded)
    return torch.stack([(a - b).square().sum(1).mean() for a, b in zip(found, target, strict=True)]).sum()


def _features(detector: nn.Module, pixels: Tensor) -> list[Tensor]:
    """Return the feature maps of every stage as float32 unit vectors."""
    stages = detector(pixels, output_hidden_states=True).hidden_states
    return [functional.normalize(stage.float(), dim=1) for stage in stages]


def _batch(data: dict[str, Any], count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw images float32 [B 3 H W] in [-1, 1] and labels int64 [B H W]; mirror half of the batches."""
    rows = rng.integers(len(data["image"]), size=count)
    image, label = data["image"][rows], data["label"][rows]
    if rng.random() < 0.5:
        image, label = image[:, :, ::-1], label[:, :, ::-1]
    pixels = torch.from_numpy(normalised(image)).to(memory_format=torch.channels_last)
    return pixels, torch.from_numpy(label.astype(np.int64))


def _weight(label: Tensor) -> Tensor:
    return 1.0 + (FOREGROUND - 1.0) * (label > 0)


def weighted_error(decoded: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted absolute plus squared error."""
    error = decoded - pixels
    return _mean((error.abs() + 2.0 * error.square()).mean(1), weight)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    mean: Tensor = (values * weight).sum() / weight.sum()
    return mean


def _usage(z: Tensor) -> Tensor:
    """Make each bit certain per image, balanced over all images, and uncorrelated with the others."""
    bits = z.transpose(0, 1).flatten(1)
    chance = torch.sigmoid(4.0 * bits)
    certain, balanced = _entropy(chance).mean(), _entropy(chance.mean(1)).mean()
    soft = 2 * chance - 1
    soft = soft - soft.mean(1, keepdim=True)
    covariance = soft @ soft.T / soft.shape[1]
    off = covariance - torch.diag(torch.diag(covariance))
    usage: Tensor = ENTROPY * (certain - balanced) + DECORRELATE * off.square().mean()
    return usage


def _entropy(chance: Tensor) -> Tensor:
    chance = chance.clamp(1e-6, 1 - 1e-6)
    return -(chance * chance.log() + (1 - chance) * (1 - chance).log())
