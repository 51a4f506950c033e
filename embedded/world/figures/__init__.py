"""Drawings of all classes: `figure` returns an entity's patches around its centre."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from embedded.world.figures import animals, things
from embedded.world.figures.accessories import accessory
from embedded.world.figures.people import person
from embedded.world.palette import COLORS, shade
from embedded.world.records import Entity, Identity
from embedded.world.shapes import ACCESSORY, Figure, Patch, bounds

DRAWINGS: dict[str, Callable[[Identity], Figure]] = {
    "person": person,
    "dog": animals.dog,
    "cat": animals.cat,
    "bird": animals.bird,
    "fish": animals.fish,
    "turtle": animals.turtle,
    "ball": things.ball,
    "cup": things.cup,
    "car": things.car,
    "house": things.house,
    "star": things.star,
    "book": things.book,
    "boat": things.boat,
    "key": things.key,
}


def _look(entity: Entity) -> Identity:
    if entity.identity is not None:
        return entity.identity
    assert entity.color is not None, "an entity has a colour or an identity"
    body = COLORS[entity.color]
    return Identity(entity.class_name, body, shade(body, 0.8), body)


@lru_cache(maxsize=4096)
def figure(entity: Entity) -> tuple[Patch, ...]:
    """Return patches in drawing order, centred on the body's box, whose longest side is 1."""
    drawn = DRAWINGS[entity.class_name](_look(entity))
    x0, y0, x1, y1 = bounds([p for patch in drawn.patches for p in patch.points])
    extra = [p for name, color in entity.accessories for p in accessory(name, color, drawn.anchors, drawn.patches)]
    unit, cx, cy = max(x1 - x0, y1 - y0), (x0 + x1) / 2, (y0 + y1) / 2
    return tuple(
        Patch(tuple(((x - cx) / unit, (y - cy) / unit) for x, y in patch.points), patch.fill, patch.part, patch.edge)
        for patch in (*drawn.patches, *extra)
    )


@lru_cache(maxsize=4096)
def corners(entity: Entity, accessories: bool = True) -> NDArray[np.float64]:
    """Return all corners [N 2] of an entity's patches, in its own coordinates."""
    patches = (p for p in figure(entity) if accessories or p.part != ACCESSORY)
    return np.array([point for patch in patches for point in patch.points])
