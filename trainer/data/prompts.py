"""Read prompts.

A line of a JSONL file is GenEval's metadata ({tag, include, exclude, prompt}), or {tag, prompt, concept} with
`resolved` (what a vague prompt means) and `fact` (the index of the fact that it hints at).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from synod.contracts import GenEvalMetadata
from synod.errors import SettingsError
from synod.reader import Node
from synod.records import read
from trainer.data.files import hint, json_node, text
from trainer.types import ConceptProfile, Prompt

_CIRCUMSTANCES: Final = ("accessories", "companion", "place")  # claims of a prompt; the service judges them


def read_prompts(path: Path, concepts: Mapping[str, ConceptProfile]) -> tuple[Prompt, ...]:
    """Return the prompts of a file. Raises SettingsError, which names file, line and mistake."""
    lines = text(path).splitlines()
    prompts = tuple(
        _prompt(json_node(line, f"{path}:{number}"), concepts) for number, line in enumerate(lines, 1) if line.strip()
    )
    if not prompts:
        raise SettingsError(f"{path}: no prompts; give one JSON object per line")
    return prompts


@hint("A line is a JSON object, as in embedded/data/prompts")
def _prompt(node: Node, concepts: Mapping[str, ConceptProfile]) -> Prompt:
    of = node.fields("tag", "prompt", "concept", "resolved", "fact", "include", "exclude", *_CIRCUMSTANCES)
    text, tag, name = of.need("prompt", Node.text), of.need("tag", Node.text), of.get("concept", Node.text)
    if not text.strip():
        raise node.error("the prompt is empty")
    if name is None:
        metadata = {key: one for key, one in of.mapping().items() if key in ("tag", "include", "exclude")}
        return Prompt(text, tag, geneval=read(GenEvalMetadata, Node(metadata, node.path)))
    if "include" in of.mapping():
        raise node.error("'include' and 'concept' together; give GenEval's metadata or a concept")
    if name not in concepts:
        raise node.error(f"unknown concept {name!r}; give one of {', '.join(sorted(concepts))}")
    last = len(concepts[name].facts) - 1
    return Prompt(text, tag, name, of.get("resolved", Node.text), of.get("fact", lambda fact: fact.integer(0, last)))
