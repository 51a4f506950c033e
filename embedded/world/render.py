"""Render a scene to pixels and ground truth: polygons at four times the size, reduced by a box filter."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from embedded.world.backdrop import paint
from embedded.world.figures import corners, figure
from embedded.world.palette import OUTLINE, RGB, nearest
from embedded.world.records import LABELS, SIZE, Box, Instance, Placed, Render, Scene
from embedded.world.shapes import ACCESSORY, BODY, FACE

_SS = 4  # supersampling
_PARTS = 3


def transform(placed: Placed) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (matrix [2 2], offset [2]) from a figure's own coordinates to pixels."""
    c, s = math.cos(math.radians(placed.tilt)) * placed.size, math.sin(math.radians(placed.tilt)) * placed.size
    mirror = -1.0 if placed.flip else 1.0
    return np.array([[c * mirror, -s], [s * mirror, c]]), np.array([placed.x, placed.y])


def extent(placed: Placed, accessories: bool = True) -> Box:
    """Return the bounding box of the outline in pixels, before rendering."""
    matrix, offset = transform(placed)
    points = corners(placed.entity, accessories) @ matrix.T + offset
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    return float(x0), float(y0), float(x1), float(y1)


def render(scene: Scene, rng: np.random.Generator) -> Render:
    """Render `scene` with small jitter of shade, light, position (half a pixel) and size (2 %)."""
    image = Image.new("RGB", (SIZE * _SS, SIZE * _SS))
    owner = Image.new("L", image.size)  # 0 background, else 1 + instance * _PARTS + part
    paint(image, scene.backdrop, _SS)
    pens = ImageDraw.Draw(image), ImageDraw.Draw(owner)
    for index, placed in enumerate(scene.placed):
        _draw(_nudge(placed, rng), 1 + index * _PARTS, pens, rng)
    owners = np.asarray(owner)[_SS // 2 :: _SS, _SS // 2 :: _SS]
    instances = tuple(_truth(placed, owners, 1 + index * _PARTS) for index, placed in enumerate(scene.placed))
    return Render(_lit(np.asarray(image.reduce(_SS)), rng), _labels(scene, owners), instances)


def _nudge(placed: Placed, rng: np.random.Generator) -> Placed:
    dx, dy, ds = rng.uniform(-1, 1, 3).tolist()
    moved = (placed.x + dx / 2, placed.y + dy / 2, placed.size * (1 + 0.02 * ds))
    return Placed(placed.entity, *moved, placed.flip, placed.tilt)


def _draw(
    placed: Placed, base: int, pens: tuple[ImageDraw.ImageDraw, ImageDraw.ImageDraw], rng: np.random.Generator
) -> None:
    matrix, offset = transform(placed)
    gain, shift = rng.uniform(0.95, 1.05), rng.uniform(-4, 4, 3).tolist()
    width = placed.size * _SS
    outer, inner = 2 * max(2, round(width * 0.02)), max(1, round(width * 0.012))
    pen, owner = pens
    drawn = [(p, ((np.array(p.points) @ matrix.T + offset) * _SS).ravel().tolist()) for p in figure(placed.entity)]
    for parts in ((BODY, FACE), (ACCESSORY,)):
        layer = [(patch, points) for patch, points in drawn if patch.part in parts]
        # The outline is drawn before the fill, outside it, so that small bodies keep their colour.
        for patch, points in layer:
            if patch.edge:
                pen.line([*points, *points[:4]], fill=OUTLINE, width=outer)
        for patch, points in layer:
            if patch.fill is not None:
                pen.polygon(points, fill=_tone(patch.fill, gain, shift))
                owner.polygon(points, fill=base + patch.part)
            if patch.edge:
                pen.line([*points, *points[:4]], fill=OUTLINE, width=inner)


def _tone(color: RGB, gain: float, shift: list[float]) -> RGB:
    r, g, b = (min(255, max(0, round(c * gain + d))) for c, d in zip(color, shift, strict=True))
    return r, g, b


def _lit(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply a light gradient across the image, at most 4 % up or down."""
    slope = rng.uniform(-0.04, 0.04, 2)
    ramp = np.linspace(-1, 1, SIZE)
    light = 1 + slope[0] * ramp[:, None] + slope[1] * ramp[None, :]
    lit: NDArray[np.uint8] = np.clip(pixels * light[:, :, None] + 0.5, 0, 255).astype(np.uint8)
    return lit


def _labels(scene: Scene, owners: NDArray[np.uint8]) -> NDArray[np.uint8]:
    table = [0]
    for placed in scene.placed:
        body = LABELS.index(placed.entity.class_name)
        table += [body, LABELS.index("face"), LABELS.index("accessory")]
    labels: NDArray[np.uint8] = np.array(table, np.uint8)[owners]
    return labels


def _truth(placed: Placed, owners: NDArray[np.uint8], base: int) -> Instance:
    entity = placed.entity
    face = owners == base + FACE
    mask = (owners == base + BODY) | face
    color = entity.color
    if color is None and entity.identity is not None and entity.class_name != "person":
        color = nearest(entity.identity.primary)
    face_box = box_of(face) if face.any() else None
    worn, who = entity.accessories, entity.identity
    return Instance(entity.class_name, color, box_of(mask), mask, face_box, entity.concept, worn, who)


def box_of(mask: NDArray[np.bool_]) -> Box:
    """Return the tight box of a mask that is not empty."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)
