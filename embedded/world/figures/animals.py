"""Animals with clearly different outlines: dog, sitting cat, bird, fish, turtle."""

from __future__ import annotations

from embedded.world.figures.patterns import pattern
from embedded.world.palette import COLORS, OUTLINE, detail, nearest, shade
from embedded.world.records import Identity
from embedded.world.shapes import Anchors, Figure, Patch, arc, bar, disc, poly


def _eye(x: float, y: float, r: float, dark_body: bool) -> list[Patch]:
    eye = [disc(x, y, r, r, (250, 250, 250), edge=False)] if dark_body else []
    return [*eye, disc(x, y, r * 0.62 if dark_body else r, r * 0.62 if dark_body else r, OUTLINE, edge=False)]


def _dark(look: Identity) -> bool:
    return sum(look.primary) < 260


def dog(look: Identity) -> Figure:
    coat, tone = look.primary, detail(look.primary)
    trunk = disc(0.40, 0.60, 0.33, 0.19, coat)
    feet = look.secondary if "socks" in look.marks else coat
    far = [bar((x, 0.68), (x, 0.97), 0.11, tone) for x in (0.24, 0.68)]
    near = [bar((x, 0.66), (x, 1.0), 0.12, coat) for x in (0.14, 0.57)]
    socks = [bar((x, 0.86), (x, 1.0), 0.12, feet) for x in (0.14, 0.57)] if feet != coat else []
    tail = poly([(0.12, 0.62), (-0.08, 0.34), (0.02, 0.28), (0.24, 0.52)], coat)
    neck = poly([(0.50, 0.50), (0.62, 0.26), (0.86, 0.42), (0.72, 0.68)], coat, edge=False)
    head = [
        disc(0.76, 0.30, 0.19, 0.18, coat),
        disc(0.96, 0.37, 0.13, 0.09, coat),
        disc(1.06, 0.33, 0.05, 0.045, OUTLINE),
    ]
    collar = [bar((0.55, 0.40), (0.78, 0.58), 0.10, look.accent)] if "collar" in look.marks else []
    patch = [disc(0.82, 0.26, 0.09, 0.10, look.secondary, edge=False)] if "eyepatch" in look.marks else []
    ear_tone = look.secondary if look.pattern != "plain" else tone
    ears = {
        "floppy": disc(0.64, 0.34, 0.085, 0.19, ear_tone),
        "pointed": poly([(0.58, 0.22), (0.60, -0.08), (0.78, 0.13)], ear_tone),
        "round": disc(0.62, 0.14, 0.11, 0.11, ear_tone),
    }
    coats = pattern(look.pattern, trunk.points, look.secondary)
    eye = _eye(0.83, 0.26, 0.042, _dark(look) or bool(patch))
    patches = (*far, tail, *near, *socks, trunk, *coats, neck, *head, *patch, ears.get(look.style, ears["floppy"]))
    return Figure((*patches, *collar, *eye), Anchors((0.76, 0.15, 0.42), (0.66, 0.52, 0.36), (0.58, 0.10)))


def cat(look: Identity) -> Figure:
    coat, tone = look.primary, detail(look.primary)
    tail = poly(
        [
            (0.70, 0.92),
            (0.96, 0.86),
            (1.04, 0.62),
            (0.94, 0.44),
            (0.86, 0.48),
            (0.91, 0.64),
            (0.84, 0.76),
            (0.66, 0.80),
        ],
        coat,
    )
    trunk = disc(0.48, 0.74, 0.27, 0.27, coat)
    head = disc(0.48, 0.34, 0.29, 0.23, coat)
    inner = look.secondary if look.pattern != "plain" else tone
    ears = {
        "pointed": [[(0.20, 0.28), (0.20, -0.02), (0.44, 0.14)], [(0.76, 0.28), (0.76, -0.02), (0.52, 0.14)]],
        "round": [arc(0.26, 0.15, 0.11, 0.11)[:-1], arc(0.70, 0.15, 0.11, 0.11)[:-1]],
        "floppy": [[(0.30, 0.14), (0.06, 0.18), (0.20, 0.36)], [(0.66, 0.14), (0.90, 0.18), (0.76, 0.36)]],
    }
    ear_shapes = [poly(p, inner) for p in ears.get(look.style, ears["pointed"])]
    patch = [disc(0.59, 0.32, 0.11, 0.11, look.secondary, edge=False)] if "eyepatch" in look.marks else []
    collar = [bar((0.26, 0.56), (0.70, 0.56), 0.09, look.accent)] if "collar" in look.marks else []
    eyes = [*_eye(0.37, 0.32, 0.045, _dark(look)), *_eye(0.59, 0.32, 0.045, _dark(look) or bool(patch))]
    nose = poly([(0.44, 0.41), (0.52, 0.41), (0.48, 0.46)], (236, 120, 140), edge=False)
    feet = look.secondary if "socks" in look.marks else coat
    paws = [disc(x, 0.98, 0.10, 0.06, feet) for x in (0.37, 0.59)]
    coats = pattern(look.pattern, trunk.points, look.secondary)
    patches = (tail, trunk, *coats, *paws, *ear_shapes, head, *patch, *collar, *eyes, nose)
    return Figure(patches, Anchors((0.48, 0.16, 0.50), (0.48, 0.58, 0.46), (0.76, 0.10)))


def bird(look: Identity) -> Figure:
    coat, tone = look.primary, detail(look.primary)
    warm = COLORS["red"] if nearest(coat) in ("orange", "yellow") else COLORS["orange"]
    legs = [bar((x, 0.78), (x + 0.03, 1.0), 0.06, OUTLINE, edge=False) for x in (0.44, 0.58)]
    tail = poly([(0.22, 0.50), (-0.10, 0.40), (-0.12, 0.58), (0.20, 0.70)], tone)
    trunk = disc(0.46, 0.58, 0.32, 0.25, coat)
    head = disc(0.72, 0.32, 0.19, 0.18, coat)
    beak = poly([(0.88, 0.25), (1.10, 0.34), (0.87, 0.42)], warm)
    crest = [poly([(0.62, 0.20), (0.48, -0.04), (0.68, 0.06), (0.74, -0.08), (0.80, 0.17)], look.secondary)]
    wing_tone = look.secondary if look.pattern != "plain" else tone
    wing = poly([(0.58, 0.48), (0.50, 0.76), (0.12, 0.62), (0.32, 0.46)], wing_tone)
    collar = [bar((0.54, 0.40), (0.82, 0.50), 0.08, look.accent)] if "collar" in look.marks else []
    patch = [disc(0.77, 0.28, 0.09, 0.09, look.secondary, edge=False)] if "eyepatch" in look.marks else []
    coats = pattern(look.pattern, trunk.points, look.secondary)
    top = crest if look.style == "pointed" else []
    eye = _eye(0.78, 0.28, 0.045, _dark(look) or bool(patch))
    patches = (*legs, tail, trunk, *coats, *top, head, *patch, beak, wing, *collar, *eye)
    return Figure(patches, Anchors((0.72, 0.17, 0.42), (0.66, 0.48, 0.40), (0.54, 0.16)))


def fish(look: Identity) -> Figure:
    coat, tone = look.primary, detail(look.primary)
    fin_tone = look.secondary if look.pattern != "plain" else tone
    tail = poly([(0.24, 0.50), (0.02, 0.21), (-0.10, 0.27), (-0.02, 0.50), (-0.10, 0.73), (0.02, 0.79)], fin_tone)
    trunk = poly([(0.14, 0.50), *arc(0.58, 0.50, 0.40, 0.28, 200, 520, 26)], coat)
    top = {
        "pointed": poly([(0.36, 0.34), (0.42, 0.06), (0.53, 0.04), (0.78, 0.34)], fin_tone),
        "round": disc(0.56, 0.24, 0.20, 0.12, fin_tone),
    }
    belly = poly([(0.46, 0.66), (0.40, 0.88), (0.50, 0.93), (0.70, 0.66)], fin_tone)
    coats = pattern(look.pattern, trunk.points, look.secondary)
    gill = poly(
        arc(0.70, 0.50, 0.07, 0.16, -90, 90, 10) + arc(0.70, 0.50, 0.05, 0.14, 90, -90, 10),
        shade(coat, 0.6),
        edge=False,
    )
    patch = [disc(0.83, 0.42, 0.10, 0.10, look.secondary, edge=False)] if "eyepatch" in look.marks else []
    collar = [bar((0.66, 0.25), (0.66, 0.75), 0.08, look.accent)] if "collar" in look.marks else []
    patches = (tail, top.get(look.style, top["pointed"]), belly, trunk, *coats, gill, *collar, *patch)
    eye = [
        disc(0.84, 0.42, 0.06, 0.06, (250, 250, 250), edge=False),
        disc(0.85, 0.42, 0.035, 0.035, OUTLINE, edge=False),
    ]
    return Figure((*patches, *eye), Anchors((0.66, 0.24, 0.40), (0.60, 0.60, 0.50), (0.36, 0.26)))


def turtle(look: Identity) -> Figure:
    coat, tone = look.primary, detail(look.primary)
    skin = tone
    legs = [poly([(x, 0.70), (x + 0.17, 0.70), (x + 0.15, 0.94), (x + 0.01, 0.94)], skin) for x in (0.12, 0.56)]
    tail = poly([(0.10, 0.64), (-0.06, 0.70), (-0.06, 0.77), (0.10, 0.77)], skin)
    head = [
        poly([(0.78, 0.76), (0.82, 0.56), (0.94, 0.56), (0.92, 0.78)], skin, edge=False),
        disc(0.98, 0.50, 0.15, 0.13, skin),
    ]
    shell = poly(arc(0.44, 0.74, 0.42, 0.50, 180, 360), coat)
    border = poly([(0.0, 0.74), (0.02, 0.66), (0.86, 0.66), (0.88, 0.74), (0.82, 0.78), (0.06, 0.78)], tone)
    seams = (
        []
        if look.pattern != "plain"
        else [poly([(0.44, 0.34), (0.60, 0.46), (0.54, 0.60), (0.34, 0.60), (0.28, 0.46)], tone)]
    )
    coats = pattern(look.pattern, shell.points, look.secondary)
    collar = [bar((0.80, 0.66), (0.96, 0.66), 0.08, look.accent)] if "collar" in look.marks else []
    eye = _eye(1.03, 0.46, 0.035, True)
    patches = (*legs, tail, *head, shell, *coats, *seams, border, *collar, *eye)
    return Figure(patches, Anchors((0.98, 0.38, 0.34), (0.84, 0.66, 0.26), (0.44, 0.22)))
