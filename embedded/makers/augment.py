"""Degradations that scorers must tolerate: blur, JPEG, noise, light, small shifts."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]


def blur(image: Pixels, radius: float) -> Pixels:
    """Blur a uint8 [H W 3] image with a Gaussian of `radius` pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def jpeg(image: Pixels, quality: int) -> Pixels:
    """Encode a uint8 [H W 3] image as JPEG at `quality` (1..95) and decode it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def resample(image: Pixels, size: int) -> Pixels:
    """Shrink a square uint8 image to `size` pixels and enlarge it, which loses detail as a tokenizer does."""
    whole = Image.fromarray(image)
    small = whole.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(small.resize(whole.size, Image.Resampling.BICUBIC))


def light(image: Pixels, gain: float, offset: float) -> Pixels:
    """Change contrast by `gain` about mid-grey and brightness by `offset` grey levels."""
    lit: Pixels = np.clip((image.astype(np.float32) - 127.5) * gain + 127.5 + offset, 0, 255).astype(np.uint8)
    return lit


def noise(image: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Add Gaussian noise of `sigma` grey levels."""
    return np.clip(image + rng.normal(0.0, sigma, image.shape), 0, 255).astype(np.uint8)


def shift(image: NDArray[np.uint8], dx: int, dy: int) -> NDArray[np.uint8]:
    """Move an [H W] or [H W 3] image by whole pixels, repeating its edge."""
    pad = max(abs(dx), abs(dy))
    wide = np.pad(image, ((pad, pad), (pad, pad)) + ((0, 0),) * (image.ndim - 2), mode="edge")
    return wide[pad - dy : pad - dy + image.shape[0], pad - dx : pad - dx + image.shape[1]]


def degrade(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Apply a random mixture of the above, without the shift; one image in seven stays clean."""
    steps: tuple[tuple[float, Callable[[Pixels], Pixels]], ...] = (
        (0.4, lambda p: light(p, rng.uniform(0.92, 1.08), rng.uniform(-8, 8))),
        (0.15, lambda p: resample(p, int(rng.integers(36, 60)))),
        (0.3, lambda p: blur(p, rng.uniform(0.4, 1.3))),
        (0.25, lambda p: noise(p, rng.uniform(1.0, 6.0), rng)),
        (0.3, lambda p: jpeg(p, int(rng.integers(50, 96)))),
    )
    for chance, step in steps:
        if rng.random() < chance:
            image = step(image)
    return image
