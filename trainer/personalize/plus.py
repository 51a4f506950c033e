"""Read plus.json, the UnifyBench++ part of a concept. Its data are not published; this is the schema of Synod's:

    {"facts": [{"text", "split": "train" | "test", "prompt", "resolved"}],
     "dense": [{"prompt"}],
     "dense_reasoning": [{"passage", "question", "answer", "points": [..]}],
     "dense_generation": [{"prompt", "resolved"}]}

Each fact is one of info.json's extra_info, and no fact and no prompt is in both splits. Prompts name the concept. A
file with the key GENERATED is from `synod personalize prepare`, which writes it again after info.json has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from synod.reader import Node, each, is_object
from trainer.data.files import hint, json_node, text
from trainer.personalize.records import SPLITS, Fact, Passage, Plus

GENERATED: Final = "generated_by"


def is_generated(path: Path) -> bool:
    """Return whether a file is there that `synod personalize prepare` has written. Raises SettingsError."""
    return path.exists() and is_object(tree := json_node(text(path), str(path)).value) and GENERATED in tree


@hint("trainer/personalize/plus.py has the schema")
def read_plus(path: Path, name: str, facts: Sequence[str], heldout: Sequence[bool] = ()) -> Plus:
    """Return the UnifyBench++ part of the concept `name` with these `facts`; an empty one if there is no such file.

    `heldout` marks facts of which prompts may be of the split "test" alone. Raises SettingsError, which names the entry
    and the mistake.
    """
    if not path.exists():
        return Plus()
    of = json_node(text(path), str(path)).fields("facts", "dense", "dense_reasoning", "dense_generation", GENERATED)
    known = of.get("facts", each(lambda node: _fact(node, name, facts))) or ()
    held = {fact for fact, is_held in zip(facts, heldout, strict=False) if is_held}
    if wrong := [i for i, fact in enumerate(known) if fact.split == "train" and fact.text in held]:
        raise of.error(
            f"facts[{wrong[0]}] is of the split train, but info.json's heldout holds it out; give split test"
        )
    for what in ("text", "prompt"):
        trained = {getattr(fact, what): i for i, fact in enumerate(known) if fact.split == "train"}
        for i, fact in enumerate(known):
            if fact.split == "test" and getattr(fact, what) in trained:
                first = trained[getattr(fact, what)]
                raise of.error(f"facts[{first}] (train) and facts[{i}] (test) have the same {what}; splits must differ")
    return Plus(
        known,
        of.get("dense", each(lambda node: _prompt(node.fields("prompt"), name))) or (),
        of.get("dense_reasoning", each(_passage)) or (),
        of.get("dense_generation", each(lambda node: _pair(node.fields("prompt", "resolved"), name))) or (),
    )


def _fact(node: Node, name: str, facts: Sequence[str]) -> Fact:
    of = node.fields("text", "split", "prompt", "resolved")
    said = of.need("text", Node.text)
    if said not in facts:
        raise node.error(f"the fact {said!r} is not in info.json's extra_info; its facts are {', '.join(facts) or '-'}")
    return Fact(said, of.need("split", lambda one: one.choice(SPLITS)), *_pair(of, name))


def _passage(node: Node) -> Passage:
    of = node.fields("passage", "question", "answer", "points")
    points = of.need("points", each(Node.text))
    if not points:
        raise node.error("no points; give at least one thing that the answer must say")
    return Passage(of.need("passage", Node.text), of.need("question", Node.text), of.need("answer", Node.text), points)


def _pair(node: Node, name: str) -> tuple[str, str]:
    prompt, resolved = _prompt(node, name), node.need("resolved", Node.text)
    if resolved == prompt:
        raise node.error("'resolved' equals 'prompt'; it must say in words what the vague prompt means")
    return prompt, resolved


def _prompt(node: Node, name: str) -> str:
    prompt = node.need("prompt", Node.text)
    if name not in prompt:
        raise node.error(f"the prompt does not name {name}")
    return prompt
