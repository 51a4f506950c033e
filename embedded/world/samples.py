"""Sample items of the demo: held-out prompts with correct images, and some deliberately wrong ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from embedded.world.concepts import profile_of
from embedded.world.language import plural
from embedded.world.prompts import POOLS
from embedded.world.questions import AttributeQuestion, attribute_questions
from embedded.world.records import Prompt, Task
from embedded.world.render import render
from embedded.world.scenes import scene_for
from synod.contracts import GenEvalClause, GenEvalMetadata, Pixels
from synod.records import write

_CONCEPTS: tuple[tuple[str, Task], ...] = (
    ("<ada>", "attribute"),
    ("<ben>", "attribute"),
    ("<cleo>", "dense"),
    ("<dov>", "attribute"),
    ("<esme>", "dense"),
    ("<bo>", "attribute"),
    ("<rex>", "dense"),
    ("<mia>", "attribute"),
    ("<finn>", "dense"),
    ("<zip>", "attribute"),
    ("<pip>", "attribute"),
    ("<nook>", "dense"),
)
_GENEVAL: dict[Task, int] = {
    "single_object": 1,
    "two_object": 1,
    "counting": 2,
    "colors": 1,
    "position": 2,
    "color_attr": 1,
}
Entry = dict[str, Any]
Case = tuple[Prompt, Prompt, str | None]  # the prompt, the prompt that is rendered, what is wrong


def samples() -> tuple[list[Entry], dict[str, Pixels]]:
    """Return (items as on the wire with file names for images, images by file name); deterministic."""
    rng = np.random.default_rng(2024)
    cases = [_right(_any(task, rng, name)) for name, task in _CONCEPTS]
    cases += [_right(prompt) for task, count in _GENEVAL.items() for prompt in _several(task, count, rng)]
    cases += [_other_person(rng), _other_color(rng), *_broken_geneval(rng)]
    entries: list[Entry] = []
    images: dict[str, Pixels] = {}
    for i, (prompt, shown, note) in enumerate(cases):
        about = prompt.concept.strip("<>") if prompt.concept else prompt.task
        name = f"{i:02d}_{about}.png"
        images[name] = render(scene_for(shown, rng), rng).image
        entries.append({"image": name, "prompt": prompt.text, **_truth(prompt)} | ({"note": note} if note else {}))
    return entries, images


def _any(task: Task, rng: np.random.Generator, concept: str | None = None) -> Prompt:
    pool = [p for p in POOLS[task, "heldout"] if p.concept == concept]
    return pool[int(rng.integers(len(pool)))]


def _several(task: Task, count: int, rng: np.random.Generator) -> list[Prompt]:
    pool = POOLS[task, "heldout"]
    return [pool[i] for i in rng.choice(len(pool), count, replace=False)]


def _right(prompt: Prompt) -> Case:
    return prompt, prompt, None


def _other_person(rng: np.random.Generator) -> Case:
    prompt = _any("attribute", rng, "<ada>")
    return prompt, replace(prompt, concept="<ben>"), "the image shows <ben>, not <ada>"


def _other_color(rng: np.random.Generator) -> Case:
    prompt = _any("dense", rng, "<bo>")
    assert prompt.companion is not None, "dense prompts have a second object"
    color, noun = prompt.companion
    other = "blue" if color != "blue" else "red"
    return prompt, replace(prompt, companion=(other, noun)), f"the {noun} is {other}, not {color}"


def _broken_geneval(rng: np.random.Generator) -> list[Case]:
    """Return a case with one object too few, and one with another colour."""
    counting = next(p for p in POOLS["counting", "heldout"] if p.geneval and p.geneval.include[0].count == 4)
    colors = _any("colors", rng)
    assert counting.geneval is not None, "GenEval prompts carry metadata"
    assert colors.geneval is not None, "GenEval prompts carry metadata"
    three, clause = replace(counting.geneval.include[0], count=3), colors.geneval.include[0]
    other = "green" if clause.color != "green" else "red"
    painted = replace(clause, color=other)
    return [
        (counting, _showing(counting, three), f"three {plural(three.class_name)}, not four"),
        (colors, _showing(colors, painted), f"the {clause.class_name} is {other}, not {clause.color}"),
    ]


def _showing(prompt: Prompt, clause: GenEvalClause) -> Prompt:
    return replace(prompt, geneval=GenEvalMetadata(prompt.task, (clause,)))


def _truth(prompt: Prompt) -> Entry:
    if prompt.geneval is not None:
        return {"geneval": write(GenEvalMetadata, prompt.geneval)}
    assert prompt.concept is not None, "a prompt without metadata names a concept"
    profile, question = profile_of(prompt.concept), _question(prompt)
    folder = f"../concepts/{profile.name.strip('<>')}/train"
    return {
        "references": [f"{folder}/{i:02d}.png" for i in (0, 5)],
        "reasoning": {"text": question.text, "segments": list(question.segments), "truth": list(question.truth)},
        "concept": {"kind": profile.kind, "class_word": profile.class_word, "token": profile.name},
    }


def _question(prompt: Prompt) -> AttributeQuestion:
    """Return the first wording of the fact that `prompt` refers to."""
    accessory, color = prompt.accessories[0]
    return next(
        question
        for question in attribute_questions("heldout")
        if question.concept == prompt.concept and f"{color} {accessory}" in question.segments[question.truth.index(1.0)]
    )
