"""People, drawn as a bust whose face is half as wide as the figure."""

from __future__ import annotations

from embedded.world.figures.patterns import pattern
from embedded.world.palette import OUTLINE, RGB, shade
from embedded.world.records import Identity
from embedded.world.shapes import FACE, Anchors, Figure, Patch, arc, bar, disc, poly

HAIR_STYLES = ("short", "long", "curly", "bun", "spiky", "bald")
_CAP = [(0.235, 0.42), (0.25, 0.30), (0.36, 0.22), (0.50, 0.20), (0.64, 0.22), (0.75, 0.30), (0.765, 0.42)]


def _behind(style: str, hair: RGB) -> list[Patch]:
    if style == "long":
        sides = [(0.16, 0.80), (0.84, 0.80)]
        return [poly([*arc(0.5, 0.36, 0.34, 0.33, 180, 360, 20), sides[1], sides[0]], hair)]
    if style == "curly":
        blobs = ((0.24, 0.26), (0.36, 0.12), (0.5, 0.08), (0.64, 0.12), (0.76, 0.26), (0.20, 0.42), (0.80, 0.42))
        return [disc(x, y, 0.14, 0.13, hair) for x, y in blobs]
    if style == "bun":
        return [disc(0.5, 0.02, 0.13, 0.12, hair)]
    return []


def _top(style: str, hair: RGB) -> list[Patch]:
    dome = arc(0.5, 0.36, 0.275, 0.285, 172, 368, 20)
    if style == "bald":
        return []
    if style == "spiky":
        spikes = [(0.22, 0.34), (0.16, 0.12), (0.30, 0.16), (0.34, -0.02), (0.46, 0.09), (0.54, -0.06), (0.60, 0.09)]
        rest = [(0.72, -0.01), (0.72, 0.16), (0.85, 0.13), (0.78, 0.34), (0.64, 0.23), (0.50, 0.21), (0.36, 0.23)]
        return [poly([*spikes, *rest], hair)]
    if style == "long":  # parted on one side
        return [poly([*dome, (0.76, 0.46), (0.70, 0.30), (0.40, 0.18), (0.27, 0.34), (0.24, 0.46)], hair)]
    return [poly([*dome, *reversed(_CAP)], hair)]


def _features(look: Identity) -> list[Patch]:
    dark = sum(look.primary) < 260
    ink = (14, 10, 10) if dark else OUTLINE
    white = [disc(x, 0.41, 0.052, 0.045, (252, 252, 252), FACE, edge=False) for x in (0.39, 0.61)]
    eyes = [disc(x, 0.41, 0.03, 0.036, ink, FACE, edge=False) for x in (0.39, 0.61)]
    nose = poly([(0.50, 0.43), (0.54, 0.51), (0.48, 0.51)], shade(look.primary, 0.78), FACE, edge=False)
    mouth = poly(arc(0.5, 0.555, 0.09, 0.045, 0, 180, 10), (172, 52, 56), FACE, edge=False)
    beard: list[Patch] = []
    if "beard" in look.marks:
        jaw = arc(0.5, 0.38, 0.265, 0.315, 0, 180, 20)
        beard = [poly([*jaw, (0.31, 0.47), (0.40, 0.51), (0.60, 0.51), (0.69, 0.47)], look.secondary, FACE)]
    glasses: list[Patch] = []
    if "glasses" in look.marks:
        for x in (0.385, 0.615):
            far, near = arc(x, 0.41, 0.115, 0.10, n=18), arc(x, 0.41, 0.075, 0.062, n=18)
            glasses.append(poly([*far, *reversed(near)], (24, 24, 30), FACE, edge=False))
        glasses.append(bar((0.47, 0.39), (0.53, 0.39), 0.035, (24, 24, 30), FACE, edge=False))
    return [*beard, *white, *eyes, nose, mouth, *glasses]


def person(look: Identity) -> Figure:
    torso = poly(
        [(0.04, 1.0), (0.06, 0.84), (0.20, 0.74), (0.42, 0.69), (0.58, 0.69), (0.80, 0.74), (0.94, 0.84), (0.96, 1.0)],
        look.accent,
    )
    trim = (250, 250, 248) if sum(look.accent) < 480 else (60, 60, 72)
    neck = poly([(0.41, 0.56), (0.59, 0.56), (0.60, 0.72), (0.5, 0.77), (0.40, 0.72)], shade(look.primary, 0.86))
    ears = [disc(x, 0.42, 0.05, 0.065, look.primary) for x in (0.235, 0.765)]
    head = disc(0.5, 0.38, 0.265, 0.315, look.primary, FACE)
    hair = look.secondary
    patches = (
        *_behind(look.style, hair),
        torso,
        *pattern(look.pattern, torso.points, trim),
        poly(torso.points, None),
        neck,
        *ears,
        head,
        *_features(look),
        *_top(look.style, hair),
    )
    return Figure(patches, Anchors((0.5, 0.17, 0.62), (0.5, 0.76, 0.52), (0.75, 0.12)))
