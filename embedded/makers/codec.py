"""The codec of sana-world: diffusers' AutoencoderDC, 64 x 64 pixels <-> latents of 16 x 8 x 8.

A small flow model draws well only latents that are easy to learn. So they have mean 0 and variance 1 in every channel,
classes and colours can be read from them linearly, and the decoder is trained on latents with noise.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC
from torch import Tensor, nn
from torch.nn import functional

from embedded.makers.dataset import COLOR_NAMES, FINE_LABELS, PATCH, Sizes, normalised
from embedded.makers.drawings import drawings
from embedded.makers.loop import Part, Recipe
from embedded.makers.magvit import frozen_detector, perceptual_distance, weighted_error

RECIPE = Recipe(seed=20, steps=4000, batch=8, lr=1.2e-3, weight_decay=0.01)
CHANNELS, WIDTHS = 16, (16, 32, 64, 128)
FOREGROUND = 4.0  # weight of patches that show an object: the background is most of an image, and easy
PERCEPTUAL, MEANING, MOMENTS = 0.5, 0.1, 0.1
NOISE = 0.15  # standard deviation, of latents of variance 1
MEASURED = 256  # images that the scaling factor follows from
WORKERS = 2  # parts of a batch, each computed by a thread of its own
FOLDER = "vae"  # of a pipeline


class CodecMaker:
    """Train on reconstruction, the distance in the detector's features, and labels read from the latents."""

    def __init__(self, recipe: Recipe, folder: Path, sizes: Sizes, detector: Path) -> None:
        self.recipe = recipe
        self.data = drawings(folder, sizes)
        self.codec = new_codec().to(memory_format=torch.channels_last)
        self.reader = nn.Conv2d(CHANNELS, len(FINE_LABELS) + 1 + len(COLOR_NAMES), 1)
        self.module: nn.Module = nn.ModuleDict({"codec": self.codec, "reader": self.reader})
        self.detector = frozen_detector(detector)

    def loss(self, rng: np.random.Generator) -> list[Part]:
        """Draw a batch, half of the time mirrored, and return its loss in WORKERS parts."""
        rows = rng.integers(len(self.data["image"]), size=self.recipe.batch)
        image, front, patch, tint = (self.data[name][rows] for name in ("image", "front", "patch", "tint"))
        if rng.random() < 0.5:
            image, front, patch, tint = (one[:, :, ::-1].copy() for one in (image, front, patch, tint))
        noise = NOISE * rng.standard_normal((len(rows), CHANNELS, *front.shape[1:]), np.float32)
        pixels, labels = torch.from_numpy(normalised(image)), torch.from_numpy(np.stack((front, patch, tint), 1)).long()
        cuts = [cut for cut in np.array_split(np.arange(len(rows)), WORKERS) if len(cut)]
        return [
            partial(self._part, pixels[cut], labels[cut], torch.from_numpy(noise[cut]), len(cut) / len(rows))
            for cut in cuts
        ]

    def _part(self, pixels: Tensor, labels: Tensor, noise: Tensor, share: float) -> Tensor:
        front, patch, tint = labels.unbind(1)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            z = self.codec.encode(pixels.to(memory_format=torch.channels_last), return_dict=False)[0].float()
            noisy = z + noise
            decoded = self.codec.decode(noisy, return_dict=False)[0].float()
            kind, color = self.reader(noisy).float().split((len(FINE_LABELS), 1 + len(COLOR_NAMES)), 1)
            distance = perceptual_distance(self.detector, decoded, pixels)
        weight = 1.0 + (FOREGROUND - 1.0) * (front > 0)
        wide = weight.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
        wrong = sum(functional.cross_entropy(a, b, reduction="none") for a, b in ((kind, patch), (color, tint)))
        meaning = (weight * wrong).sum() / weight.sum()
        error = weighted_error(decoded, pixels, wide) + PERCEPTUAL * distance
        return share * (error + MEANING * meaning + MOMENTS * moments(z))

    @torch.no_grad()
    def save(self, directory: Path) -> None:
        """Write the codec in bfloat16, with the factor by which its latents get a standard deviation of 1."""
        self.codec.eval()
        z = encode(self.codec, self.data["image"][:MEASURED])
        self.codec.register_to_config(scaling_factor=round(1 / float(z.std()), 5))
        self.codec.to(torch.bfloat16).save_pretrained(directory / FOLDER)


def new_codec() -> AutoencoderDC:
    """Return a codec of 1.2 million random weights, of the published class."""
    return AutoencoderDC(
        latent_channels=CHANNELS,
        encoder_block_out_channels=WIDTHS,
        decoder_block_out_channels=WIDTHS,
        encoder_layers_per_block=(1,) * len(WIDTHS),
        decoder_layers_per_block=(1,) * len(WIDTHS),
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_qkv_multiscales=((),) * len(WIDTHS),
        decoder_qkv_multiscales=((),) * len(WIDTHS),
    )


@torch.no_grad()
def encode(codec: AutoencoderDC, images: np.ndarray) -> Tensor:
    """Return the latents [N 16 8 8], unscaled, of images uint8 [N 64 64 3]."""
    parts = np.array_split(images, max(1, len(images) // 32))
    return torch.cat([codec.encode(torch.from_numpy(normalised(part)), return_dict=False)[0] for part in parts])


def moments(z_bchw: Tensor) -> Tensor:
    """Return how far each channel is from mean 0 and variance 1, and how correlated two channels are."""
    rows = z_bchw.transpose(0, 1).flatten(1)
    mean = rows.mean(1)
    covariance = (rows - mean[:, None]) @ (rows - mean[:, None]).T / rows.shape[1]
    apart = covariance - torch.eye(len(rows))
    return mean.square().mean() + apart.square().sum(1).mean()
