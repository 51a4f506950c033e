"""Training images of the flow models, rendered once: GenEval's scenes, and described individuals."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embedded import world
from embedded.makers.dataset import Arrays, Sizes, cached, described, front, patch_maps
from embedded.makers.prompts import training_prompt
from embedded.makers.show_o import texts
from embedded.makers.texts import corpus

GENEVAL_SHARE = 0.85


def drawings(folder: Path, sizes: Sizes) -> Arrays:
    """Return image [N 64 64 3], front, patch and tint [N 8 8] (as in `dataset`), and texts.

    `texts` are N records: `prompt`, `words` (where every object is, by `world.arrangement`), and `asked`, pairs of a
    question about the image and its answer.
    """
    return cached(folder / f"drawings-{sizes.drawings}", _chunk, seed=16, total=sizes.drawings)


def all_texts() -> list[str]:
    """Return texts with every word of the prompts, words, questions and answers of drawings."""
    rng = np.random.default_rng(32)
    scenes = [world.render(world.sample(rng, task)[0], rng) for task in world.GENEVAL_TASKS * 40]
    return [*corpus(), *texts(), *map(world.arrangement, scenes)]


def _chunk(rng: np.random.Generator, _start: int, count: int) -> Arrays:
    found: Arrays = {"image": [], "front": [], "patch": [], "tint": []}
    records = []
    for _ in range(count):
        scene, prompt = _drawing(rng)
        rendered = world.render(scene, rng)
        patch, tint = patch_maps(rendered)
        for name, value in (
            ("image", rendered.image),
            ("front", front(rendered.labels)),
            ("patch", patch),
            ("tint", tint),
        ):
            found[name].append(value)
        records.append(
            {"prompt": prompt, "words": world.arrangement(rendered), "asked": world.questions(rendered, rng)}
        )
    return {**{name: np.stack(values) for name, values in found.items()}, "texts": records}


def _drawing(rng: np.random.Generator) -> tuple[world.Scene, str]:
    if rng.random() >= GENEVAL_SHARE:
        scene, (text,) = described(rng)
        return scene, text
    prompt = training_prompt(world.GENEVAL_TASKS[rng.integers(len(world.GENEVAL_TASKS))], rng)
    return world.scene_for(prompt, rng), prompt.text
