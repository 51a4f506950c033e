"""Training prompts: those of the train split, and many more composed like them; never one that is held out.

The world's own train split has few position, colour-pair and dense prompts; composing new ones keeps the image-text
model from learning them by heart. A composed prompt claims nothing that a held-out prompt claims.
"""

from __future__ import annotations

import numpy as np

from embedded import world
from embedded.makers.texts import HELD_OUT
from embedded.world.language import AT_PLACE, verb, with_article
from embedded.world.records import Task
from synod.contracts import RELATIONS, GenEvalClause, GenEvalMetadata

COMPOSED_SHARE = 0.6
_COLORS = tuple(world.COLORS)
_HELD_CLAIMS = {world.claims(prompt) for prompt in world.PROMPTS_HELDOUT if prompt.geneval is not None}


def training_prompt(task: Task, rng: np.random.Generator) -> world.Prompt:
    """A random prompt of `task` to train on."""
    composers = {"position": _position, "color_attr": _color_attr, "attribute": _attribute, "dense": _dense}
    if task not in composers or rng.random() >= COMPOSED_SHARE:
        pool = world.POOLS[task, "train"]
        return pool[rng.integers(len(pool))]
    while True:
        prompt = composers[task](rng)
        fresh = prompt.geneval is None or world.claims(prompt) not in _HELD_CLAIMS
        if fresh and prompt.text not in HELD_OUT:
            return prompt


def fact(card: world.ConceptCard, accessory: str, color: str) -> str:
    """The sentence that tells a concept's accessory."""
    return f"{card.name} has {with_article(f'{color} {accessory}')}"


def answers(prompt: world.Prompt, rng: np.random.Generator) -> tuple[str, ...]:
    """What reasoning may put behind a concept's prompt: the fact that it needs, or else something said of its looks."""
    if prompt.concept is None:
        return ()
    card = world.card_of(prompt.concept)
    if prompt.accessories:
        return (fact(card, *prompt.accessories[0]),)
    known = world.conversations(card)
    return (known[rng.integers(len(known))][1],)


def _position(rng: np.random.Generator) -> world.Prompt:
    a, b = (world.CLASSES[i] for i in rng.choice(len(world.CLASSES), 2, replace=False))
    relation = RELATIONS[rng.integers(len(RELATIONS))]
    clauses = GenEvalClause(b, 1), GenEvalClause(a, 1, position=(relation, 0))
    text = f"a photo of {with_article(a)} {relation} {with_article(b)}"
    return world.Prompt(text, "position", "train", GenEvalMetadata("position", clauses))


def _color_attr(rng: np.random.Generator) -> world.Prompt:
    nouns = [world.COLORED[i] for i in rng.choice(len(world.COLORED), 2, replace=False)]
    colors = [_COLORS[i] for i in rng.choice(len(_COLORS), 2, replace=False)]
    clauses = tuple(GenEvalClause(noun, 1, color) for noun, color in zip(nouns, colors, strict=True))
    text = " and ".join(with_article(f"{color} {noun}") for noun, color in zip(nouns, colors, strict=True))
    return world.Prompt(f"a photo of {text}", "color_attr", "train", GenEvalMetadata("color_attr", clauses))


def _card_and_accessory(rng: np.random.Generator) -> tuple[world.ConceptCard, str, str]:
    """A concept with any accessory that is not one of its held-out facts."""
    card = world.CONCEPTS[rng.integers(len(world.CONCEPTS))]
    held = {fact.accessory for fact in card.attributes if fact.heldout}
    allowed = [name for name in world.ACCESSORIES if name not in held]
    return card, allowed[rng.integers(len(allowed))], _COLORS[rng.integers(len(_COLORS))]


def _attribute(rng: np.random.Generator) -> world.Prompt:
    card, accessory, color = _card_and_accessory(rng)
    opening = ("", "a photo of ", "a picture of ")[rng.integers(3)]
    text = f"{opening}{card.name} {verb(accessory)} {card.pronoun} {accessory}"
    return world.Prompt(text, "attribute", "train", concept=card.name, accessories=((accessory, color),))


def _dense(rng: np.random.Generator) -> world.Prompt:
    card, accessory, color = _card_and_accessory(rng)
    nouns = [noun for noun in world.COLORED if noun != card.class_word]
    companion = (_COLORS[rng.integers(len(_COLORS))], nouns[rng.integers(len(nouns))])
    place = world.PLACES[rng.integers(len(world.PLACES))]
    worn = f"{verb(accessory)} {with_article(f'{color} {accessory}')}"
    text = f"a photo of {card.name} {worn} next to {with_article(' '.join(companion))} {AT_PLACE[place]}"
    return world.Prompt(
        text, "dense", "train", None, card.name, ((accessory, color),), companion=companion, place=place
    )
