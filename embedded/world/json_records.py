"""The world's records as JSON: GenEval metadata, and the lines and files of embedded/data."""

from __future__ import annotations

from typing import Any

from embedded.world.concepts import profile_of
from embedded.world.conversations import conversations
from embedded.world.false_prompts import resolve
from embedded.world.records import ConceptProfile, Prompt
from synod.contracts import GenEvalClause, GenEvalMetadata


def geneval_json(metadata: GenEvalMetadata) -> dict[str, Any]:
    """Return GenEval's format, with `exclude` and optional fields only where they are set."""
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
    """Return one line of the prompt files.

    `resolved` is the explicit form of a vague prompt; `fact` is an index into the profile's extra_info.
    """
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
    facts = [(fact.accessory, fact.color) for fact in profile_of(prompt.concept).attributes]
    return facts.index(prompt.accessories[0])


def conversations_json(profile: ConceptProfile) -> list[dict[str, str]]:
    """Return the questions about a concept's images with their answers."""
    return [{"query": query, "answer": answer} for query, answer in conversations(profile)]


def info_json(profile: ConceptProfile) -> dict[str, Any]:
    """Return the facts stated about a concept; `heldout` has a flag for each entry of `extra_info`."""
    return {
        "name": profile.name,
        "kind": profile.kind,
        "class": profile.class_word,
        "info": profile.info,
        "extra_info": [fact.sentence for fact in profile.attributes],
        "heldout": [fact.heldout for fact in profile.attributes],
    }
