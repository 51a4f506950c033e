"""Edits of scenes: one object changes, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from embedded import world
from embedded.world.records import Task


@pytest.mark.parametrize("task", world.EDITED_TASKS)
def test_one_object_changes_as_the_captions_say(task: Task) -> None:
    rng, pool = np.random.default_rng(0), world.POOLS[task, "train"]
    changed = {"color": 0, "class": 0}
    for prompt in pool[:60]:
        edit = world.edit_of(prompt, rng)
        assert edit.caption == prompt.text
        before, after = (
            [(str(one.color), one.class_name) for one in render.instances] for render in (edit.source, edit.edited)
        )
        differing = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert len(differing) == 1
        (old, new), *_ = differing
        assert " ".join(old) in edit.caption
        assert " ".join(new) in edit.target_caption
        assert (old[0] == new[0]) != (old[1] == new[1])
        changed["color" if old[1] == new[1] else "class"] += 1
        said = f"the {old[1]} should be {new[0]}" if old[1] == new[1] else f"{new[1]} and not the {old[1]}"
        assert edit.prompt.endswith(said)
    assert min(changed.values()) > 10


def test_everything_else_stays() -> None:
    """The pixels outside of the two bodies are the same, but for the light's rounding."""
    rng, pool = np.random.default_rng(1), world.POOLS["color_attr", "train"]
    for prompt in pool[:20]:
        edit = world.edit_of(prompt, rng)
        outside = (edit.source.labels == 0) & (edit.edited.labels == 0)
        same = np.abs(edit.source.image.astype(int) - edit.edited.image)[outside].max(-1) <= 2
        assert same.mean() > 0.95, prompt.text


def test_an_edited_object_stays_in_the_image() -> None:
    rng, pool = np.random.default_rng(2), world.POOLS["colors", "train"]
    for prompt in pool[:60]:
        edit = world.edit_of(prompt, rng)
        for render in (edit.source, edit.edited):
            (thing,) = render.instances
            assert min(thing.box) >= 0
            assert max(thing.box) <= world.SIZE
            assert thing.mask.any()
