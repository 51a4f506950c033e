"""The world's records as JSON: GenEval's own form of metadata, and the lines and files of embedded/data."""

from __future__ import annotations

from typing import Any

from embedded.world.records import ConceptCard, Prompt
from synod.contracts import GenEvalClause, GenEvalMetadata


def geneval_json(metadata: GenEvalMetadata) -> dict[str, Any]:
    """GenEval's own form: `exclude` and optional fields only where they say something."""
    document: dict[str, Any] = {"tag": metadata.tag, "include": [_clause(c) for c in metadata.include]}
    if metadata.exclude:
        document["exclude"] = [_clause(c) for c in metadata.exclude]
    return document


def _clause(clause: GenEvalClause) -> dict[str, Any]:
    document: dict[str, Any] = {"class": clause.class_name, "count": clause.count}
    if clause.color is not None:
        document["color"] = clause.color
    if clause.position is not None:
        document["position"] = list(clause.position)
    return document


def prompt_json(prompt: Prompt) -> dict[str, Any]:
    """One line of the prompt files."""
    if prompt.geneval is not None:
        return {**geneval_json(prompt.geneval), "prompt": prompt.text}
    document: dict[str, Any] = {"tag": prompt.task, "prompt": prompt.text, "concept": prompt.concept}
    if prompt.accessories:
        document["accessories"] = [list(pair) for pair in prompt.accessories]
    if prompt.companion:
        document["companion"] = list(prompt.companion)
    if prompt.place:
        document["place"] = prompt.place
    return document


def info_json(card: ConceptCard) -> dict[str, Any]:
    """What is told about a concept; `heldout` flags go with `extra_info` one by one."""
    return {
        "name": card.name,
        "kind": card.kind,
        "class": card.class_word,
        "info": card.info,
        "extra_info": [fact.sentence for fact in card.attributes],
        "heldout": [fact.heldout for fact in card.attributes],
    }
