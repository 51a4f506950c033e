"""Prompts about one concept that Sync-GRPO trains on, and held-out ones, in the form of `read_concept_prompts`.

Plain prompts put the concept into scenes. The others hint at a fact; they are those of plus.json and of the test set's
t2i_conditions.json, or else name the last word of each fact. Held-out prompts are about other scenes, and about the
facts that training leaves out; where there is no such fact they hint at the same facts in other words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.personalize import templates
from trainer.personalize.records import SPLITS, ConceptRecord, Split

Line = dict[str, Any]


def prompt_lines(record: ConceptRecord, split: Split) -> list[Line]:
    """Return the prompts to train on ("train"), or to evaluate with ("test"), one object a line."""
    scenes = templates.SCENES if split == "train" else templates.HELDOUT_SCENES
    plain = [{"tag": "plain", **_about(record, scene)} for scene in scenes]
    return [*plain, *({"tag": "attribute", **line} for line in _hints(record, split))]


def plus_facts(record: ConceptRecord) -> list[Line]:
    """Return the `facts` of a plus.json with these hints; none if no fact is held out, since its splits must differ."""
    found = [(split, line) for split in SPLITS for line in _hints(record, split)]
    facts = {split: {line["fact"] for own, line in found if own == split} for split in SPLITS}
    if not facts["test"] or facts["train"] & facts["test"]:
        return []
    return [
        {"text": record.facts[line["fact"]], "split": split, "prompt": line["prompt"], "resolved": line["resolved"]}
        for split, line in found
    ]


def _hints(record: ConceptRecord, split: Split) -> list[Line]:
    """Return prompts that hint at facts of a split."""
    plus = [(one.prompt, one.resolved, record.facts.index(one.text), one.split) for one in record.plus.facts]
    stored = [
        (one.text, _resolved(record, one.text, one.fact), one.fact, "test" if one.heldout else "train")
        for one in record.prompts
        if one.fact is not None
    ]
    found = [_line(record, prompt, resolved, fact) for prompt, resolved, fact, own in plus or stored if own == split]
    if found or (split == "train" and (plus or stored)):
        return found
    hints = templates.HINTS if split == "train" else templates.HELDOUT_HINTS
    return [_hint(record, hint, fact) for fact in _facts_of(record, split) for hint in hints]


def _hint(record: ConceptRecord, hint: str, fact: int) -> Line:
    prompt = hint.replace("{}", record.name).replace("[]", record.facts[fact].rstrip(". ").split()[-1])
    return _line(record, prompt, _resolved(record, prompt, fact), fact)


def _facts_of(record: ConceptRecord, split: Split) -> Sequence[int]:
    """Return the indices of the facts of a split: the held-out ones for "test", or all if none is held out."""
    held = [i for i, fact in enumerate(record.facts) if fact in record.held_out]
    if split == "test":
        return held or range(len(record.facts))
    return [i for i in range(len(record.facts)) if i not in held]


def _about(record: ConceptRecord, scene: str) -> Line:
    prompt = scene.replace("{}", record.name)
    return {"prompt": prompt, "concept": record.name, "resolved": scene.replace("{}", _a(record.class_word))}


def _line(record: ConceptRecord, prompt: str, resolved: str, fact: int) -> Line:
    return {"prompt": prompt, "concept": record.name, "resolved": resolved, "fact": fact}


def _resolved(record: ConceptRecord, prompt: str, fact: int) -> str:
    """Return the prompt and its fact in words that need no name, for scorers that know no concept."""
    said = record.facts[fact].rstrip(". ").replace(record.name, f"the {record.class_word}")
    return f"{prompt.rstrip('. ').replace(record.name, _a(record.class_word))}. {said[0].upper()}{said[1:]}"


def _a(word: str) -> str:
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"
