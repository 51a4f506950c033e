"""Sentences on where things are: "a red dog at the top left, a cup in the middle"."""

from __future__ import annotations

from embedded.world.language import with_article
from embedded.world.records import SIZE, Instance, Render

_EDGE = 0.38  # of the image: a centre within it of a side is at that side
_PLACES = tuple(
    f"at the {where}" if where else "in the middle"
    for where in ("top left", "top", "top right", "left", "", "right", "bottom left", "bottom", "bottom right")
)


def arrangement(rendered: Render) -> str:
    """Name every object of an image, in the order of its scene, with its colour and its place among nine."""
    return ", ".join(_phrase(thing) for thing in rendered.instances)


def in_reading_order(words: str) -> str:
    """Return an arrangement from the top left to the bottom right; things at one place are in alphabetical order."""

    def place(phrase: str) -> tuple[int, str]:
        return next(i for i, where in enumerate(_PLACES) if phrase.endswith(f" {where}")), phrase

    return ", ".join(sorted(words.split(", "), key=place))


def _phrase(thing: Instance) -> str:
    noun = thing.class_name if thing.color is None else f"{thing.color} {thing.class_name}"
    x0, y0, x1, y1 = thing.box
    sides = (_side((y0 + y1) / 2, "top", "bottom"), _side((x0 + x1) / 2, "left", "right"))
    where = " ".join(side for side in sides if side)
    return f"{with_article(noun)} {f'at the {where}' if where else 'in the middle'}"


def _side(center: float, low: str, high: str) -> str:
    return low if center < _EDGE * SIZE else high if center > (1 - _EDGE) * SIZE else ""
