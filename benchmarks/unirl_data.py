"""The files of UniRL-Zero's scenarios in the synthetic world, written by `benchmarks.unirl`: JSONL, and images as PNG.

Held-out files are about held-out prompts. A file follows from its split, count and SEED.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from embedded import world
from embedded.world.export import png
from embedded.world.json_records import prompt_json
from embedded.world.records import Split, Task
from embedded.world.visual_questions import NO, YES
from synod.contracts import Pixels
from trainer.data.lines import YES_NO
from trainer.images import write_whole

SEED: Final = 611
WRONG: Final = 0.5  # share of judged images that show another prompt
Drawn = tuple[dict[str, Any], Pixels]  # a line, and its image


def write(folder: Path, task: str, split: Split, count: int) -> Path:
    """Write the file of a task unless it is there, and return its path."""
    path = folder / f"{task}-{split}-{count}.jsonl"
    if not path.exists():
        lines = []
        for i, (line, image) in zip(range(count), _stream(DRAW[task], split), strict=False):
            name = f"{task}-{split}/{i:05d}.png"
            write_whole(folder / name, png(image))
            lines.append(json.dumps({**line, "image": name}) + "\n")
        write_whole(path, "".join(lines).encode())
    return path


def _stream(draw: Callable[[Split, np.random.Generator], Drawn], split: Split) -> Iterator[Drawn]:
    rng = np.random.default_rng([SEED, split == "train"])
    while True:
        yield draw(split, rng)


def question(split: Split, rng: np.random.Generator) -> Drawn:
    """Draw a question about an image whose answer is yes or no; each is right half of the time."""
    wanted = (YES, NO)[int(rng.integers(2))]
    while True:
        prompt = _one(split, world.GENEVAL_TASKS, rng)
        render = world.render(world.scene_for(prompt, rng), rng)
        asked = [(text, answer) for text, answer in world.questions(render, rng) if answer == wanted]
        if asked:
            text, answer = asked[int(rng.integers(len(asked)))]
            truth = [int(answer == YES), int(answer == NO)]
            return {"question": text, "segments": list(YES_NO), "truth": truth, "tag": prompt.task}, render.image


def edit(split: Split, rng: np.random.Generator) -> Drawn:
    """Draw an edit."""
    found = world.edit_of(_one(split, world.EDITED_TASKS, rng), rng)
    names = ("caption", "target_caption", "prompt", "reverse_prompt")
    return {name: getattr(found, name) for name in names}, found.source.image


def reflection(split: Split, rng: np.random.Generator) -> Drawn:
    """Draw a prompt, and an image of it or of another prompt of its task."""
    prompt = _one(split, world.GENEVAL_TASKS, rng)
    shown = prompt
    if rng.random() < WRONG:
        while world.claims(shown) == world.claims(prompt):
            shown = _one(split, (prompt.task,), rng)
    render = world.render(world.scene_for(shown, rng), rng)
    return {**prompt_json(prompt), "truth": shown is prompt}, render.image


def _one(split: Split, tasks: tuple[Task, ...], rng: np.random.Generator) -> world.Prompt:
    pool = world.POOLS[tasks[int(rng.integers(len(tasks)))], split]
    return pool[int(rng.integers(len(pool)))]


DRAW: Final[Mapping[str, Callable[[Split, np.random.Generator], Drawn]]] = {
    "questions": question,
    "edits": edit,
    "reflection": reflection,
}
