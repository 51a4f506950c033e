"""The world's records as JSON: GenEval's own form of metadata, and the lines and files of embedded/data."""

from __future__ import annotations

from typing import Any

from embedded.world.concepts import card_of
from embedded.world.conversations import conversations
from embedded.world.records import ConceptCard, Prompt
from embedded.world.twists import resolve
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
    """One line of the prompt files: `resolved` says what a vague prompt means, `fact` indexes the card's extra_info."""
    if prompt.geneval is not None:
        return {**geneval_json(prompt.geneval), "prompt": prompt.text}
    document: dict[str, Any] = {"tag": prompt.task, "prompt": prompt.text, "concept": prompt.concept}
    if (resolved := resolve(prompt)) != prompt.text:
        document["resolved"] = resolved
    if prompt.accessories:
        document["fact"] = _fact(prompt)
        document["accessories"] = [list(pair) for pair in prompt.accessories]
    if prompt.companion:
        document["companion"] = list(prompt.companion)
    if prompt.place:
        document["place"] = prompt.place
    return document


def _fact(prompt: Prompt) -> int:
    assert prompt.concept is not None, "only prompts about a concept have accessories"
    facts = [(fact.accessory, fact.color) for fact in card_of(prompt.concept).attributes]
    return facts.index(prompt.accessories[0])


def conversations_json(card: ConceptCard) -> list[dict[str, str]]:
    """What may be asked about a concept's images, with the right answers."""
    return [{"query": query, "answer": answer} for query, answer in conversations(card)]


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
