"""Accessories: large, of one colour, and not part of a body's mask."""

from __future__ import annotations

from embedded.world.palette import COLORS, OUTLINE, RGB, detail
from embedded.world.shapes import ACCESSORY, Anchors, Patch, Point, bar, bounds, disc, poly, rect

_WOOD = (122, 104, 86)


def _hat(at: Anchors, unit: float, color: RGB) -> list[Patch]:
    x, y, width = at.hat
    w, h = max(width, 0.42 * unit) / 2, 0.27 * unit

    def trapezoid(low: float, high: float, top: float) -> list[Point]:
        return [(x - low * w, y), (x - high * w, y - top), (x + high * w, y - top), (x + low * w, y)]

    crown = poly(trapezoid(0.66, 0.56, h), color, ACCESSORY)
    band = poly(trapezoid(0.66, 0.64, 0.22 * h), detail(color), ACCESSORY, edge=False)
    return [crown, band, disc(x, y + 0.02 * unit, w * 1.12, 0.055 * unit, color, ACCESSORY)]


def _scarf(at: Anchors, unit: float, color: RGB) -> list[Patch]:
    x, y, width = at.neck
    w, t = max(width, 0.36 * unit) / 2, 0.085 * unit
    sides = [(x - w, y - t), (x, y - t * 0.55), (x + w, y - t), (x + w, y + t), (x, y + t * 1.5), (x - w, y + t)]
    left = x + 0.2 * w
    tail = rect(left, y, left + 0.16 * unit, y + 0.32 * unit, color, ACCESSORY)
    stripe = rect(left, y + 0.22 * unit, left + 0.16 * unit, y + 0.26 * unit, detail(color), ACCESSORY, edge=False)
    return [tail, stripe, poly(sides, color, ACCESSORY)]


def _ribbon(at: Anchors, unit: float, color: RGB) -> list[Patch]:
    x, y = at.ribbon
    s = 0.19 * unit
    loops = [
        poly([(x, y), (x + d * s, y - 0.62 * s), (x + d * 1.05 * s, y + 0.62 * s)], color, ACCESSORY) for d in (-1, 1)
    ]
    ends = [
        poly([(x, y), (x + d * 0.65 * s, y + 1.05 * s), (x + d * 0.2 * s, y + 1.15 * s)], color, ACCESSORY)
        for d in (-1, 1)
    ]
    return [*ends, *loops, disc(x, y, 0.27 * s, 0.27 * s, detail(color), ACCESSORY)]


def _balloon(hand: tuple[float, float], unit: float, color: RGB) -> list[Patch]:
    x, y = hand[0] + 0.22 * unit, hand[1] - 0.58 * unit
    string = bar((x, y + 0.2 * unit), hand, 0.022 * unit, OUTLINE, ACCESSORY, edge=False)
    knot = poly(
        [(x, y + 0.19 * unit), (x + 0.05 * unit, y + 0.27 * unit), (x - 0.05 * unit, y + 0.27 * unit)], color, ACCESSORY
    )
    shine = disc(x - 0.06 * unit, y - 0.09 * unit, 0.035 * unit, 0.05 * unit, (255, 255, 255), ACCESSORY, edge=False)
    return [string, knot, disc(x, y, 0.17 * unit, 0.215 * unit, color, ACCESSORY), shine]


def _flag(hand: tuple[float, float], unit: float, color: RGB) -> list[Patch]:
    x, y = hand[0] + 0.04 * unit, hand[1]
    pole = bar((x, y + 0.12 * unit), (x, y - 0.78 * unit), 0.05 * unit, _WOOD, ACCESSORY)
    top, wide, tall = y - 0.76 * unit, 0.38 * unit, 0.27 * unit
    cloth = poly(
        [(x, top), (x + wide, top), (x + 0.76 * wide, top + tall / 2), (x + wide, top + tall), (x, top + tall)],
        color,
        ACCESSORY,
    )
    return [cloth, pole]


def _kite(hand: tuple[float, float], unit: float, color: RGB) -> list[Patch]:
    x, y = hand[0] + 0.22 * unit, hand[1] - 0.58 * unit
    r = 0.27 * unit
    string = bar((x, y), hand, 0.022 * unit, OUTLINE, ACCESSORY, edge=False)
    sail = [(x, y - r), (x + 0.75 * r, y - 0.2 * r), (x, y + r), (x - 0.75 * r, y - 0.2 * r)]
    tone = detail(color)
    spars = [
        bar(sail[0], sail[2], 0.03 * unit, tone, ACCESSORY, edge=False),
        bar(sail[1], sail[3], 0.03 * unit, tone, ACCESSORY, edge=False),
    ]
    return [string, poly(sail, color, ACCESSORY), *spars]


def accessory(name: str, color: str, at: Anchors, body: tuple[Patch, ...]) -> list[Patch]:
    """Return an accessory's patches on a body; carried ones are on its right, above a hand at its edge."""
    x0, y0, x1, y1 = bounds([p for patch in body for p in patch.points])
    unit, paint = max(x1 - x0, y1 - y0), COLORS[color]
    worn = {"hat": _hat, "scarf": _scarf, "ribbon": _ribbon}
    if name in worn:
        return worn[name](at, unit, paint)
    hand = (x1 - 0.02 * unit, max(y0 + 0.78 * (y1 - y0), y1 - 0.35 * unit))
    return {"balloon": _balloon, "flag": _flag, "kite": _kite}[name](hand, unit, paint)
