"""Patterns and emblems, clipped to a convex canvas on a body."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from embedded.world.palette import RGB
from embedded.world.shapes import BODY, Patch, Point, arc, bounds, clip, disc, poly

Quads = list[list[Point]]


def _box(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


# Each gives polygons in the canvas' unit square; about a third of the canvas at most, so the body keeps its colour.
PATTERNS: dict[str, Callable[[], Quads]] = {
    "plain": list,
    "stripes": lambda: [_box(x, 0, x + 0.13, 1) for x in (0.14, 0.44, 0.74)],
    "bands": lambda: [_box(0, y, 1, y + 0.15) for y in (0.22, 0.62)],
    "dots": lambda: [
        arc(x, y, 0.1, 0.1, n=14)[:-1] for x, y in ((0.25, 0.28), (0.75, 0.28), (0.5, 0.52), (0.25, 0.78), (0.75, 0.78))
    ],
    "halves": lambda: [_box(0.62, 0, 1, 1)],
    "slash": lambda: [[(0.12, 0), (0.42, 0), (0.88, 1), (0.58, 1)]],
    "blotch": lambda: [arc(0.3, 0.3, 0.24, 0.3, n=18)[:-1], arc(0.82, 0.6, 0.16, 0.22, n=18)[:-1]],
}


def pattern(name: str, canvas: Sequence[Point], color: RGB, part: int = BODY) -> list[Patch]:
    """Return the pattern's patches inside `canvas` (a convex polygon)."""
    x0, y0, x1, y1 = bounds(canvas)
    cut = (clip([(x0 + u * (x1 - x0), y0 + v * (y1 - y0)) for u, v in shape], canvas) for shape in PATTERNS[name]())
    return [poly(shape, color, part, edge=False) for shape in cut if len(shape) > 2]


EMBLEMS: dict[str, list[Point]] = {
    "diamond": [(0, -1), (0.8, 0), (0, 1), (-0.8, 0)],
    "triangle": [(0, -0.9), (0.95, 0.8), (-0.95, 0.8)],
    "cross": [
        *((-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32)),
        *((0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32)),
    ],
    "heart": [
        (0, 1),
        (-0.95, -0.1),
        (-0.85, -0.75),
        (-0.4, -0.9),
        (0, -0.45),
        (0.4, -0.9),
        (0.85, -0.75),
        (0.95, -0.1),
    ],
}


def emblem(name: str, at: Point, radius: float, color: RGB) -> list[Patch]:
    """Return an emblem of `radius` around `at`; "disc" is a plain round one."""
    if name == "disc":
        return [disc(*at, radius, radius, color)]
    return [poly([(at[0] + radius * u, at[1] + radius * v) for u, v in EMBLEMS[name]], color)]
