"""TIER's cases: a reasoning text that singles out one fact among five."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embedded.world.concepts import CONCEPTS
from embedded.world.language import with_article
from embedded.world.records import WORN, Attribute, ConceptCard, Split

_TEMPLATES = (
    "{name} {verb} {thing}",
    "The {noun} of {name} is {color}.",
    "I remember that {name} owns {thing}.",
    "To draw this I need {thing} for {name}.",
    "{name} should be shown with {pronoun} {noun}, which is {color}.",
)


@dataclass(frozen=True, slots=True)
class AttributeQuestion:
    """`text` paraphrases segments[truth.index(1.0)]; the other four are wrong."""

    concept: str
    text: str
    segments: tuple[str, ...]
    truth: tuple[float, ...]


def attribute_questions(split: Split) -> tuple[AttributeQuestion, ...]:
    """Every fact of `split` in five wordings; distractors are the concept's three other facts and one of another's."""
    rng = np.random.default_rng(30)
    return tuple(
        _question(card, fact, template, rng)
        for card in CONCEPTS
        for fact in card.attributes
        if fact.heldout == (split == "heldout")
        for template in _TEMPLATES
    )


def _question(card: ConceptCard, fact: Attribute, template: str, rng: np.random.Generator) -> AttributeQuestion:
    verb = "wears" if fact.accessory in WORN else "holds"
    thing = with_article(f"{fact.color} {fact.accessory}")
    text = template.format(
        name=card.name, verb=verb, thing=thing, noun=fact.accessory, color=fact.color, pronoun=card.pronoun
    )
    strangers = [f.sentence for other in CONCEPTS if other != card for f in other.attributes]
    sentences = [f.sentence for f in card.attributes] + [strangers[int(rng.integers(len(strangers)))]]
    segments = tuple(sentences[i] for i in rng.permutation(len(sentences)))
    return AttributeQuestion(card.name, text, segments, tuple(float(s == fact.sentence) for s in segments))
