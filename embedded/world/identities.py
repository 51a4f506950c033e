"""Random individuals for metric learning, with continuous variation of tones."""

from __future__ import annotations

import numpy as np

from embedded.world.figures.patterns import EMBLEMS, PATTERNS
from embedded.world.figures.people import HAIR_STYLES
from embedded.world.palette import COLORS, HAIR, SKINS, jitter
from embedded.world.records import ANIMALS, CLASSES, THINGS, Identity

_BY_KIND = {"person": ("person",), "animal": ANIMALS, "object": THINGS}
_SHIRTS = ("plain", "stripes", "bands", "dots", "halves", "slash")


def random_identity(kind_or_class: str, rng: np.random.Generator) -> Identity:
    """Draw an individual of a class ("dog") or of a kind ("person", "animal", "object")."""
    classes = _BY_KIND.get(kind_or_class, (kind_or_class,))
    class_name = _pick(classes, rng)
    if class_name not in CLASSES:
        raise ValueError(f"{kind_or_class!r} is not a class or kind; the classes are {', '.join(CLASSES)}")
    return _person(rng) if class_name == "person" else _creature_or_thing(class_name, rng)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _person(rng: np.random.Generator) -> Identity:
    skin = jitter(SKINS[_pick(tuple(SKINS), rng)], rng, 0.03)
    hair = jitter(HAIR[_pick(tuple(HAIR), rng)], rng)
    shirt = jitter(COLORS[_pick(tuple(COLORS), rng)], rng)
    marks = tuple(mark for mark, share in (("glasses", 0.35), ("beard", 0.3)) if rng.random() < share)
    return Identity("person", skin, hair, shirt, _pick(HAIR_STYLES, rng), _pick(_SHIRTS, rng), marks)


def _creature_or_thing(class_name: str, rng: np.random.Generator) -> Identity:
    names = rng.choice(len(COLORS), 3, replace=False)
    first, second, third = (jitter(tuple(COLORS.values())[i], rng) for i in names)
    pattern = _pick(tuple(PATTERNS), rng)
    if class_name in ANIMALS:
        style = _pick(("floppy", "pointed", "round"), rng)
        marks = tuple(m for m, share in (("collar", 0.4), ("eyepatch", 0.3), ("socks", 0.3)) if rng.random() < share)
        if class_name not in ("dog", "cat"):
            marks = tuple(m for m in marks if m != "socks")
        return Identity(class_name, first, second, third, style, pattern, marks)
    emblem = _pick((*EMBLEMS, "disc", ""), rng)
    return Identity(class_name, first, second, third, "plain", pattern, (emblem,) if emblem else ())
