"""Backdrops: muted tints, a ground band, and four named places that dense prompts use."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from embedded.world.palette import RGB, TINTS, shade
from embedded.world.records import PLACES, SIZE, Backdrop

_SKY: RGB = (186, 204, 214)
_GRASS: RGB = (148, 172, 134)
_SAND: RGB = (214, 202, 170)
_SEA: RGB = (140, 174, 186)
_DUNE: RGB = (206, 184, 152)
_WALL: RGB = (208, 198, 196)
_FLOOR: RGB = (166, 150, 136)


def random_backdrop(rng: np.random.Generator, place: str | None = None) -> Backdrop:
    """Draw a plain tint, a tint with a ground band, or the named `place`."""
    sky, ground = rng.choice(len(TINTS), 2, replace=False).tolist()
    return Backdrop(sky, ground if rng.random() < 0.5 else None, float(rng.uniform(38, 52)), place)


def random_place(rng: np.random.Generator) -> str:
    return str(rng.choice(PLACES))


def paint(image: Image.Image, backdrop: Backdrop, scale: int) -> None:
    """Fill `image` (RGB, SIZE * scale pixels a side)."""
    pen = ImageDraw.Draw(image)
    side = SIZE * scale
    line = backdrop.horizon * scale
    if backdrop.place is not None:
        _PLACES[backdrop.place](pen, side, line)
        return
    pen.rectangle((0, 0, side, side), fill=TINTS[backdrop.sky])
    if backdrop.ground is not None:
        pen.rectangle((0, line, side, side), fill=shade(TINTS[backdrop.ground], 0.9))


def _meadow(pen: ImageDraw.ImageDraw, side: int, line: float) -> None:
    pen.rectangle((0, 0, side, side), fill=_SKY)
    pen.ellipse((-side * 0.5, line - side * 0.2, side * 0.7, line + side), fill=shade(_GRASS, 1.15))
    pen.rectangle((0, line, side, side), fill=_GRASS)
    for i in range(9):
        x, y = side * (0.06 + 0.11 * i), line + side * (0.06 + 0.08 * ((i * 5) % 3))
        pen.line((x, y, x - 5, y - 14, x, y, x + 5, y - 14), fill=shade(_GRASS, 0.75), width=3)


def _beach(pen: ImageDraw.ImageDraw, side: int, line: float) -> None:
    pen.rectangle((0, 0, side, side), fill=shade(_SKY, 1.2))
    pen.rectangle((0, line - side * 0.24, side, line), fill=_SEA)
    for i in range(5):
        x, y = side * (0.02 + 0.21 * i), line - side * (0.17 - 0.08 * (i % 2))
        pen.arc((x, y, x + side * 0.1, y + side * 0.06), 180, 360, fill=shade(_SEA, 1.5), width=4)
    pen.rectangle((0, line, side, side), fill=_SAND)


def _room(pen: ImageDraw.ImageDraw, side: int, line: float) -> None:
    pen.rectangle((0, 0, side, side), fill=_WALL)
    for x in range(0, side, side // 8):
        pen.line((x, 0, x, line), fill=shade(_WALL, 0.92), width=4)
    pen.rectangle((0, line, side, side), fill=_FLOOR)
    pen.rectangle((0, line - 8, side, line), fill=shade(_WALL, 1.5))
    for i in range(-2, 7):
        pen.line((side * 0.25 * i, side, side * (0.25 + 0.125 * i), line), fill=shade(_FLOOR, 0.82), width=3)


def _desert(pen: ImageDraw.ImageDraw, side: int, line: float) -> None:
    pen.rectangle((0, 0, side, side), fill=(220, 210, 204))
    pen.polygon((0, line, side * 0.28, line - side * 0.26, side * 0.56, line), fill=shade(_DUNE, 0.86))
    pen.polygon((side * 0.4, line, side * 0.74, line - side * 0.34, side * 1.1, line), fill=shade(_DUNE, 0.92))
    pen.rectangle((0, line, side, side), fill=_DUNE)


_PLACES = {"meadow": _meadow, "beach": _beach, "room": _room, "desert": _desert}
