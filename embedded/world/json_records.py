"""The world's records as JSON: the lines and files of embedded/data."""

from __future__ import annotations

from typing import Any

from embedded.world.concepts import profile_of
from embedded.world.false_prompts import resolve
from embedded.world.records import ConceptProfile, Prompt
from synod.contracts import GenEvalMetadata
from synod.records import write


def prompt_json(prompt: Prompt) -> dict[str, Any]:
    """Return one line of the prompt files.

    `resolved` is the explicit form of a prompt about a concept; `fact` is an index into the profile's extra_info.
    """
    if prompt.geneval is not None:
        return {**write(GenEvalMetadata, prompt.geneval), "prompt": prompt.text}
    assert prompt.concept is not None, "a prompt without metadata names a concept"
    facts = [(fact.accessory, fact.color) for fact in profile_of(prompt.concept).attributes]
    document = {
        "tag": prompt.task,
        "prompt": prompt.text,
        "concept": prompt.concept,
        "resolved": resolve(prompt),
        "fact": facts.index(prompt.accessories[0]) if prompt.accessories else None,
        "accessories": [list(pair) for pair in prompt.accessories] or None,
        "companion": prompt.companion,
        "place": prompt.place,
    }
    return {name: value for name, value in document.items() if value is not None}


def info_json(profile: ConceptProfile) -> dict[str, Any]:
    """Return the facts stated about a concept. Questions of training list all of them; its prompts hint at half."""
    return {
        "name": profile.name,
        "kind": profile.kind,
        "class": profile.class_word,
        "info": profile.info,
        "extra_info": [fact.sentence for fact in profile.attributes],
    }
