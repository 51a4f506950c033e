"""Scenes with their prompts and renders, once per session."""

from __future__ import annotations

import numpy as np
import pytest

from embedded import world

Case = tuple[world.Prompt, world.Scene, world.Render]


@pytest.fixture(scope="session")
def cases() -> list[Case]:
    """Return forty of every task and split."""
    rng = np.random.default_rng(11)
    drawn = []
    for split in ("train", "heldout"):
        for task in world.TASKS:
            for _ in range(40):
                scene, prompt = world.sample(rng, task, split)
                drawn.append((prompt, scene, world.render(scene, rng)))
    return drawn
