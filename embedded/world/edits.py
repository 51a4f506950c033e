"""Edits: one object of a scene gets another colour or becomes another thing; everything else stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from embedded.world.language import with_article
from embedded.world.layout import MARGIN
from embedded.world.palette import COLORS
from embedded.world.prompts import color_pair_prompt
from embedded.world.records import COLORED, SIZE, Placed, Prompt, Render, Scene, Task
from embedded.world.render import extent, render
from embedded.world.scenes import scene_for

EDITED_TASKS: tuple[Task, ...] = ("colors", "color_attr")  # every object of their prompts has a colour
_Named = tuple[str, str]  # a colour and a class


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """A scene before and after an edit, what each shows, and the instructions there and back."""

    source: Render
    edited: Render
    caption: str
    target_caption: str
    prompt: str
    reverse_prompt: str


def edit_of(prompt: Prompt, rng: np.random.Generator) -> Edit:
    """Draw an edit of a scene of a prompt of EDITED_TASKS.

    Instructions are made of words that prompts and answers have, so that a tokenizer of those knows them.
    """
    assert prompt.task in EDITED_TASKS, prompt.task
    assert prompt.geneval is not None
    named = [(str(clause.color), clause.class_name) for clause in prompt.geneval.include]
    at, new = _change(named, rng)
    scene = scene_for(prompt, rng)
    placed = tuple(_changed(one, new) if one.entity.class_name == named[at][1] else one for one in scene.placed)
    light = int(rng.integers(2**32))  # the same in both
    source, edited = (render(one, np.random.default_rng(light)) for one in (scene, Scene(placed, scene.backdrop)))
    after = [*named[:at], new, *named[at + 1 :]]
    there, back = _instruction(named[at], new), _instruction(new, named[at])
    return Edit(source, edited, prompt.text, color_pair_prompt(after, prompt.split).text, there, back)


def _change(named: Sequence[_Named], rng: np.random.Generator) -> tuple[int, _Named]:
    """Return which object changes, and its new colour and class, of which one is new."""
    at = int(rng.integers(len(named)))
    color, noun = named[at]
    if rng.random() < 0.5:
        others = [one for one in COLORS if one != color]
        return at, (others[int(rng.integers(len(others)))], noun)
    others = [one for one in COLORED if one not in {shown for _, shown in named}]
    return at, (color, others[int(rng.integers(len(others)))])


def _changed(placed: Placed, new: _Named) -> Placed:
    """Return the new object in the place of another: moved only where it would leave the image."""
    found = replace(placed, entity=replace(placed.entity, color=new[0], class_name=new[1]))
    x0, y0, x1, y1 = extent(found)
    return replace(found, x=found.x + _inwards(x0, x1), y=found.y + _inwards(y0, y1))


def _inwards(low: float, high: float) -> float:
    return max(0.0, MARGIN - low) - max(0.0, high - (SIZE - MARGIN))


def _instruction(old: _Named, new: _Named) -> str:
    if old[1] == new[1]:
        return f"the {old[1]} should be {new[0]}"
    return f"show {with_article(new[1])} and not the {old[1]}"
