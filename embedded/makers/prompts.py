"""Training prompts: the train split, and new ones composed like them; never a held-out prompt.

The train split has few position, colour-pair and dense prompts; composing new ones keeps the image-text model from
memorising them. A composed prompt shares no claim with a held-out one.
"""

from __future__ import annotations

import numpy as np

from embedded import world
from embedded.makers.texts import HELD_OUT
from embedded.world.language import with_article
from embedded.world.prompts import ATTRIBUTE, attribute_prompt, color_pair_prompt, dense_prompt, position_prompt
from embedded.world.records import Task
from synod.contracts import RELATIONS

COMPOSED_SHARE = 0.6
_COLORS = tuple(world.COLORS)
_HELD_CLAIMS = {world.claims(prompt) for prompt in world.PROMPTS_HELDOUT if prompt.geneval is not None}


def training_prompt(task: Task, rng: np.random.Generator) -> world.Prompt:
    """Return a random training prompt of `task`."""
    composers = {"position": _position, "color_attr": _color_attr, "attribute": _attribute, "dense": _dense}
    if task not in composers or rng.random() >= COMPOSED_SHARE:
        pool = world.POOLS[task, "train"]
        return pool[rng.integers(len(pool))]
    while True:
        prompt = composers[task](rng)
        fresh = prompt.geneval is None or world.claims(prompt) not in _HELD_CLAIMS
        if fresh and prompt.text not in HELD_OUT:
            return prompt


def fact(profile: world.ConceptProfile, accessory: str, color: str) -> str:
    """Return the sentence that states a concept's accessory."""
    return f"{profile.name} has {with_article(f'{color} {accessory}')}"


def answers(prompt: world.Prompt, rng: np.random.Generator) -> tuple[str, ...]:
    """Return the answer that may follow a concept's prompt: the needed fact, or one about its looks."""
    if prompt.concept is None:
        return ()
    profile = world.profile_of(prompt.concept)
    if prompt.accessories:
        return (fact(profile, *prompt.accessories[0]),)
    known = world.conversations(profile)
    return (known[rng.integers(len(known))][1],)


def _position(rng: np.random.Generator) -> world.Prompt:
    a, b = (world.CLASSES[i] for i in rng.choice(len(world.CLASSES), 2, replace=False))
    return position_prompt(a, RELATIONS[rng.integers(len(RELATIONS))], b, "train")


def _color_attr(rng: np.random.Generator) -> world.Prompt:
    nouns = [world.COLORED[i] for i in rng.choice(len(world.COLORED), 2, replace=False)]
    colors = [_COLORS[i] for i in rng.choice(len(_COLORS), 2, replace=False)]
    return color_pair_prompt(list(zip(colors, nouns, strict=True)), "train")


def _profile_and_accessory(rng: np.random.Generator) -> tuple[world.ConceptProfile, tuple[str, str]]:
    """Pick a concept with an accessory and colour outside its held-out facts."""
    profile = world.CONCEPTS[rng.integers(len(world.CONCEPTS))]
    held = {fact.accessory for fact in profile.attributes if fact.heldout}
    allowed = [name for name in world.ACCESSORIES if name not in held]
    return profile, (allowed[rng.integers(len(allowed))], _COLORS[rng.integers(len(_COLORS))])


def _attribute(rng: np.random.Generator) -> world.Prompt:
    profile, worn = _profile_and_accessory(rng)
    return attribute_prompt(ATTRIBUTE[rng.integers(len(ATTRIBUTE))], profile, worn, "train")


def _dense(rng: np.random.Generator) -> world.Prompt:
    profile, worn = _profile_and_accessory(rng)
    nouns = [noun for noun in world.COLORED if noun != profile.class_word]
    companion = (_COLORS[rng.integers(len(_COLORS))], nouns[rng.integers(len(nouns))])
    return dense_prompt(profile, worn, companion, world.PLACES[rng.integers(len(world.PLACES))], "train")
