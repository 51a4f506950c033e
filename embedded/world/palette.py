"""The world's colours: GenEval's ten, neutral tints, skin and hair."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

RGB = tuple[int, int, int]

COLORS: dict[str, RGB] = {  # GenEval's ten, in GenEval's order (it breaks ties of an argmax)
    "red": (214, 26, 32),
    "orange": (250, 132, 8),
    "yellow": (252, 224, 36),
    "green": (36, 158, 56),
    "blue": (32, 84, 214),
    "purple": (124, 40, 168),
    "pink": (252, 142, 196),
    "brown": (118, 68, 30),
    "black": (30, 30, 34),
    "white": (250, 250, 248),
}
SKINS: dict[str, RGB] = {
    "pale": (255, 222, 192),
    "light": (240, 194, 150),
    "tan": (206, 150, 104),
    "brown": (150, 98, 62),
    "dark": (98, 62, 42),
}
HAIR: dict[str, RGB] = {
    "black": (30, 26, 28),
    "brown": (96, 58, 30),
    "blond": (236, 200, 96),
    "ginger": (206, 92, 30),
    "grey": (168, 168, 174),
    "white": (244, 244, 240),
}
# Muted, and far from all ten colours in hue or saturation, so that only objects have a colour.
TINTS: tuple[RGB, ...] = (
    (178, 192, 202),
    (186, 196, 178),
    (204, 196, 178),
    (194, 186, 202),
    (178, 198, 194),
    (206, 190, 186),
    (164, 174, 184),
    (188, 188, 190),
)
OUTLINE: RGB = (38, 34, 38)


def shade(color: RGB, factor: float) -> RGB:
    """Darken `color` (factor < 1), or mix it with white by factor - 1 (factor > 1)."""
    if factor <= 1:
        return (round(color[0] * factor), round(color[1] * factor), round(color[2] * factor))
    mix = factor - 1
    r, g, b = (round(c + (255 - c) * mix) for c in color)
    return r, g, b


def detail(color: RGB) -> RGB:
    """Return a tone for details with the same colour name: lighter on dark bodies, darker on light ones."""
    light = sum(color)
    return shade(color, 1.18 if light < 150 else 0.84 if light < 450 else 0.88 if light < 600 else 0.93)


def jitter(color: RGB, rng: np.random.Generator, spread: float = 0.05) -> RGB:
    """Draw a similar tone with the same colour name."""
    scaled = np.asarray(color) * rng.uniform(1 - spread, 1 + spread) + rng.uniform(-80 * spread, 80 * spread, 3)
    r, g, b = np.clip(np.rint(scaled), 0, 255).astype(int).tolist()
    return (r, g, b)


def nearest(color: RGB, names: Mapping[str, RGB] = COLORS) -> str:
    """Return the name of the nearest colour in RGB (Euclidean; the first of equals)."""
    return min(names, key=lambda name: sum((a - b) ** 2 for a, b in zip(color, names[name], strict=True)))
