"""Patches (filled polygons with a part label) and basic shapes. Unit coordinates, y downwards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from embedded.world.palette import RGB

Point = tuple[float, float]
BODY, FACE, ACCESSORY = range(3)


@dataclass(frozen=True, slots=True)
class Patch:
    """A polygon. `edge` draws its outline; without `fill` there is only an outline, which owns no pixels."""

    points: tuple[Point, ...]
    fill: RGB | None
    part: int = BODY
    edge: bool = True


@dataclass(frozen=True, slots=True)
class Anchors:
    """Positions of accessories: hat (x, y of its brim, width), neck (x, y, width), ribbon (x, y)."""

    hat: tuple[float, float, float]
    neck: tuple[float, float, float]
    ribbon: Point


@dataclass(frozen=True, slots=True)
class Figure:
    """Patches in drawing order, and the anchors, in arbitrary units."""

    patches: tuple[Patch, ...]
    anchors: Anchors


def poly(points: Iterable[Point], fill: RGB | None, part: int = BODY, edge: bool = True) -> Patch:
    return Patch(tuple(points), fill, part, edge)


def arc(cx: float, cy: float, rx: float, ry: float, start: float = 0, end: float = 360, n: int = 28) -> list[Point]:
    """Return points of an ellipse's arc; in degrees, 0 is right, 90 is down."""
    angles = [math.radians(start + (end - start) * i / n) for i in range(n + 1)]
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def disc(cx: float, cy: float, rx: float, ry: float, fill: RGB | None, part: int = BODY, edge: bool = True) -> Patch:
    return poly(arc(cx, cy, rx, ry)[:-1], fill, part, edge)


def rect(x0: float, y0: float, x1: float, y1: float, fill: RGB | None, part: int = BODY, edge: bool = True) -> Patch:
    return poly(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), fill, part, edge)


def bar(a: Point, b: Point, width: float, fill: RGB, part: int = BODY, edge: bool = True) -> Patch:
    """Return a thick line from a to b."""
    length = math.dist(a, b)
    dx, dy = (b[1] - a[1]) / length * width / 2, (a[0] - b[0]) / length * width / 2
    points = ((a[0] + dx, a[1] + dy), (b[0] + dx, b[1] + dy), (b[0] - dx, b[1] - dy), (a[0] - dx, a[1] - dy))
    return poly(points, fill, part, edge)


def ring(cx: float, cy: float, outer: float, inner: float, fill: RGB) -> list[Patch]:
    """Return an annulus with a transparent hole."""
    far, near = arc(cx, cy, outer, outer), arc(cx, cy, inner, inner)
    return [poly([*far, *reversed(near)], fill, edge=False), poly(far, None), poly(near, None)]


def bounds(points: Sequence[Point]) -> tuple[float, float, float, float]:
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return min(xs), min(ys), max(xs), max(ys)


def clip(subject: Sequence[Point], convex: Sequence[Point]) -> list[Point]:
    """Clip `subject` to the convex polygon `convex` (Sutherland-Hodgman); empty when they do not overlap."""
    turn = sum(a[0] * b[1] - b[0] * a[1] for a, b in _sides(convex))
    out = list(subject)
    for a, b in _sides(convex):

        def inner(p: Point, a: Point = a, b: Point = b) -> float:
            return ((b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])) * turn

        kept: list[Point] = []
        for p, q in _sides(out):
            ip, iq = inner(p), inner(q)
            if ip >= 0:
                kept.append(p)
            if (ip >= 0) != (iq >= 0):
                t = ip / (ip - iq)
                kept.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
        out = kept
    return out


def _sides(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    return list(zip(points, [*points[1:], *points[:1]], strict=True))
