"""Things: one body in one dominant colour; the identity gives pattern and emblem."""

from __future__ import annotations

import math
from collections.abc import Sequence

from embedded.world.figures.patterns import emblem, pattern
from embedded.world.palette import OUTLINE, detail, shade
from embedded.world.records import Identity
from embedded.world.shapes import Anchors, Figure, Patch, Point, arc, disc, poly, rect, ring

GLASS = (206, 222, 230)
PAPER = (240, 236, 224)


def _dress(look: Identity, canvas: Sequence[Point], at: Point, radius: float) -> list[Patch]:
    marks = [patch for mark in look.marks for patch in emblem(mark, at, radius, look.accent)]
    return [*pattern(look.pattern, canvas, look.secondary), *marks]


def ball(look: Identity) -> Figure:
    tone = detail(look.primary)
    body = disc(0.5, 0.5, 0.46, 0.46, look.primary)
    seams = [
        poly(arc(0.02, 0.5, 0.36, 0.50, -50, 50, 12) + arc(0.02, 0.5, 0.30, 0.44, 50, -50, 12), tone, edge=False),
        poly(arc(0.98, 0.5, 0.36, 0.50, 130, 230, 12) + arc(0.98, 0.5, 0.30, 0.44, 230, 130, 12), tone, edge=False),
    ]
    shine = disc(0.36, 0.26, 0.08, 0.06, shade(look.primary, 1.45), edge=False)
    dress = _dress(look, body.points, (0.5, 0.52), 0.17)
    border = disc(0.5, 0.5, 0.46, 0.46, None)
    return Figure((body, *(dress or seams), border, shine), Anchors((0.5, 0.10, 0.46), (0.5, 0.74, 0.80), (0.80, 0.16)))


def cup(look: Identity) -> Figure:
    body = poly([(0.08, 0.16), (0.72, 0.16), (0.64, 0.96), (0.16, 0.96)], look.primary)
    mouth = disc(0.40, 0.16, 0.32, 0.09, shade(look.primary, 0.55))
    dress = _dress(look, body.points, (0.40, 0.62), 0.15)
    handle = ring(0.74, 0.50, 0.24, 0.13, look.primary)
    return Figure((*handle, body, *dress, mouth), Anchors((0.40, 0.14, 0.56), (0.40, 0.66, 0.60), (0.62, 0.30)))


def car(look: Identity) -> Figure:
    roof = poly([(0.20, 0.48), (0.32, 0.20), (0.68, 0.20), (0.82, 0.48)], look.primary)
    body = poly([(0.0, 0.52), (0.06, 0.46), (0.90, 0.46), (1.04, 0.54), (1.04, 0.76), (0.0, 0.76)], look.primary)
    panes = [
        poly([(0.29, 0.45), (0.36, 0.26), (0.48, 0.26), (0.48, 0.45)], GLASS, edge=False),
        poly([(0.53, 0.45), (0.53, 0.26), (0.65, 0.26), (0.74, 0.45)], GLASS, edge=False),
    ]
    wheels = [
        p
        for x in (0.24, 0.80)
        for p in (disc(x, 0.77, 0.14, 0.14, OUTLINE), disc(x, 0.77, 0.06, 0.06, (186, 186, 190)))
    ]
    lamp = disc(1.0, 0.58, 0.035, 0.045, (255, 244, 190), edge=False)
    dress = _dress(look, body.points, (0.52, 0.62), 0.12)
    return Figure(
        (roof, body, *dress, *panes, lamp, *wheels), Anchors((0.50, 0.20, 0.38), (0.52, 0.60, 0.44), (0.14, 0.44))
    )


def house(look: Identity) -> Figure:
    wall = rect(0.12, 0.42, 0.88, 0.98, look.primary)
    roof = poly([(0.0, 0.46), (0.5, 0.02), (1.0, 0.46)], detail(look.primary))
    chimney = rect(0.70, 0.06, 0.82, 0.30, look.primary)
    door = rect(0.42, 0.66, 0.60, 0.98, OUTLINE)
    panes = [rect(x, 0.54, x + 0.15, 0.70, GLASS) for x in (0.20, 0.68)]
    dress = pattern(look.pattern, wall.points, look.secondary)
    mark = [p for m in look.marks for p in emblem(m, (0.5, 0.30), 0.12, look.accent)]
    return Figure(
        (chimney, wall, *dress, roof, *mark, door, *panes), Anchors((0.5, 0.10, 0.40), (0.5, 0.50, 0.78), (0.84, 0.36))
    )


def star(look: Identity) -> Figure:
    radii = (0.54, 0.235)
    tips = [
        (0.5 + radii[i % 2] * math.sin(math.pi * i / 5), 0.54 - radii[i % 2] * math.cos(math.pi * i / 5))
        for i in range(10)
    ]
    core = arc(0.5, 0.54, 0.24, 0.24)[:-1]
    return Figure(
        (poly(tips, look.primary), *_dress(look, core, (0.5, 0.56), 0.13)),
        Anchors((0.5, 0.16, 0.36), (0.5, 0.64, 0.44), (0.72, 0.28)),
    )


def book(look: Identity) -> Figure:
    pages = poly([(0.22, 0.88), (0.92, 0.76), (0.98, 0.86), (0.28, 1.0)], PAPER)
    side = poly([(0.84, 0.04), (0.90, 0.12), (0.98, 0.86), (0.92, 0.76)], PAPER)
    cover = poly([(0.12, 0.16), (0.84, 0.04), (0.92, 0.76), (0.20, 0.88)], look.primary)
    spine = poly([(0.12, 0.16), (0.20, 0.88), (0.28, 1.0), (0.18, 0.30)], detail(look.primary))
    title = poly([(0.30, 0.24), (0.72, 0.17), (0.74, 0.31), (0.32, 0.38)], PAPER)
    dress = _dress(look, cover.points, (0.54, 0.58), 0.15)
    return Figure(
        (pages, side, cover, *dress, spine, title), Anchors((0.48, 0.12, 0.46), (0.54, 0.66, 0.70), (0.76, 0.12))
    )


def boat(look: Identity) -> Figure:
    hull = poly([(0.0, 0.68), (1.0, 0.68), (0.80, 0.98), (0.20, 0.98)], look.primary)
    mast = rect(0.445, 0.02, 0.535, 0.72, (96, 84, 76))
    sails = [
        poly([(0.50, 0.06), (0.94, 0.60), (0.50, 0.60)], look.primary),
        poly([(0.47, 0.16), (0.47, 0.60), (0.08, 0.60)], detail(look.primary)),
    ]
    dress = pattern(look.pattern, hull.points, look.secondary)
    mark = [p for m in look.marks for p in emblem(m, (0.66, 0.46), 0.11, look.accent)]
    return Figure((*sails, *mark, mast, hull, *dress), Anchors((0.5, 0.12, 0.36), (0.5, 0.76, 0.76), (0.86, 0.64)))


def key(look: Identity) -> Figure:
    bow = ring(0.24, 0.30, 0.25, 0.11, look.primary)
    shaft = rect(0.44, 0.24, 1.12, 0.37, look.primary)
    teeth = [rect(0.76, 0.36, 0.88, 0.58, look.primary), rect(1.00, 0.36, 1.12, 0.54, look.primary)]
    dress = _dress(look, shaft.points, (0.60, 0.305), 0.09)
    return Figure((*teeth, *bow, shaft, *dress), Anchors((0.24, 0.08, 0.36), (0.62, 0.30, 0.30), (0.46, 0.14)))
