"""Test cases for TIER: a reasoning text that refers to one fact among five."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embedded.world.concepts import CONCEPTS
from embedded.world.language import with_article
from embedded.world.records import WORN, Attribute, ConceptProfile, Split

_TEMPLATES = (
    "{name} {verb} {thing}",
    "The {noun} of {name} is {color}.",
    "I remember that {name} owns {thing}.",
    "To draw this I need {thing} for {name}.",
    "{name} should be shown with {pronoun} {noun}, which is {color}.",
)


@dataclass(frozen=True, slots=True)
class AttributeQuestion:
    """A `text` that paraphrases segments[truth.index(1.0)]; the other four segments are wrong."""

    concept: str
    text: str
    segments: tuple[str, ...]
    truth: tuple[float, ...]


def attribute_questions(split: Split) -> tuple[AttributeQuestion, ...]:
    """Return every fact of `split` in five wordings.

    Distractors are the concept's three other facts and one of another concept.
    """
    rng = np.random.default_rng(30)
    return tuple(
        _question(profile, fact, template, rng)
        for profile in CONCEPTS
        for fact in profile.attributes
        if fact.heldout == (split == "heldout")
        for template in _TEMPLATES
    )


def _question(profile: ConceptProfile, fact: Attribute, template: str, rng: np.random.Generator) -> AttributeQuestion:
    verb = "wears" if fact.accessory in WORN else "holds"
    thing = with_article(f"{fact.color} {fact.accessory}")
    text = template.format(
        name=profile.name, verb=verb, thing=thing, noun=fact.accessory, color=fact.color, pronoun=profile.pronoun
    )
    foreign = [f.sentence for other in CONCEPTS if other != profile for f in other.attributes]
    sentences = [f.sentence for f in profile.attributes] + [foreign[int(rng.integers(len(foreign)))]]
    segments = tuple(sentences[i] for i in rng.permutation(len(sentences)))
    return AttributeQuestion(profile.name, text, segments, tuple(float(s == fact.sentence) for s in segments))
