"""Compose scenes that satisfy prompts."""

from __future__ import annotations

import numpy as np

from embedded.world.backdrop import random_backdrop, random_place
from embedded.world.concepts import profile_of
from embedded.world.identities import random_identity
from embedded.world.layout import GAP, MARGIN, place_entity, place_related, scatter
from embedded.world.palette import COLORS
from embedded.world.prompts import POOLS
from embedded.world.records import (
    CARRIED,
    SIZE,
    ConceptProfile,
    Entity,
    Placed,
    Prompt,
    Render,
    Scene,
    Split,
    Task,
    Worn,
)
from embedded.world.render import extent, render
from synod.contracts import GenEvalMetadata

_RENDERS = 12  # training renders of one concept


def sample(rng: np.random.Generator, task: Task, split: Split = "train") -> tuple[Scene, Prompt]:
    """Draw a prompt of `split` and a scene that satisfies it."""
    pool = POOLS[task, split]
    prompt = pool[int(rng.integers(len(pool)))]
    return scene_for(prompt, rng), prompt


def scene_for(prompt: Prompt, rng: np.random.Generator) -> Scene:
    """Compose a random scene that satisfies `prompt` and no other object."""
    if prompt.geneval is not None:
        return Scene(_geneval(prompt.geneval, rng), random_backdrop(rng))
    assert prompt.concept is not None, "a prompt without metadata names a concept"
    profile = profile_of(prompt.concept)
    return individual_scene(profile, rng, prompt.accessories, prompt.companion, prompt.place)


def individual_scene(
    profile: ConceptProfile,
    rng: np.random.Generator,
    worn: Worn = (),
    companion: tuple[str, str] | None = None,
    place: str | None = None,
) -> Scene:
    """Compose an individual, alone and large or next to a `companion` (colour, class)."""
    if companion is None:
        return concept_scene(profile, rng, worn, place)
    return _next_to(profile, worn, companion, place, rng)


def concept_scene(
    profile: ConceptProfile, rng: np.random.Generator, accessories: Worn = (), place: str | None = None
) -> Scene:
    """Compose the concept alone and large, with (name, colour) accessories, in `place` or on any backdrop."""
    where = place or (random_place(rng) if rng.random() < 0.4 else None)
    placed = place_entity(_member(profile, accessories), float(rng.uniform(40, 54)), rng)
    return Scene((placed,), random_backdrop(rng, where))


def training_renders(profile: ConceptProfile) -> list[Render]:
    """Render the concept's training images, without accessories; deterministic."""
    rng = np.random.default_rng([7, *profile.name.encode()])
    return [render(concept_scene(profile, rng), rng) for _ in range(_RENDERS)]


def _member(profile: ConceptProfile, accessories: Worn) -> Entity:
    return Entity(profile.class_word, None, profile.identity, tuple(accessories), profile.name)


def _any(class_name: str, color: str | None, rng: np.random.Generator) -> Entity:
    if class_name == "person":
        return Entity("person", None, random_identity("person", rng))
    return Entity(class_name, color or tuple(COLORS)[int(rng.integers(len(COLORS)))])


def _geneval(metadata: GenEvalMetadata, rng: np.random.Generator) -> tuple[Placed, ...]:
    entities = [_any(c.class_name, c.color, rng) for c in metadata.include for _ in range(c.count)]
    wanted = metadata.include[-1].position
    if wanted is not None:
        return place_related(entities[1], entities[0], wanted[0], rng)
    if len(entities) == 1:
        return (place_entity(entities[0], float(rng.uniform(26, 54)), rng),)
    low, high = {2: (18, 32), 3: (17, 26), 4: (16, 23)}[len(entities)]
    return scatter(entities, low, high, rng)


def _next_to(
    profile: ConceptProfile, worn: Worn, companion: tuple[str, str], place: str | None, rng: np.random.Generator
) -> Scene:
    """Place the individual on one side and its companion in the other lower corner, below what is carried."""
    color, noun = companion
    left, cut = bool(rng.random() < 0.5), float(rng.uniform(41, 43))
    carried = any(name in CARRIED for name, _ in worn)
    size = float(rng.uniform(39, 41) if profile.kind == "person" else rng.uniform(35, 38))
    # Carried accessories are on the body's right, which must be the companion's side.
    flip = not left if carried else bool(rng.random() < 0.5)
    main = Placed(_member(profile, worn), 0, 0, size, flip, float(rng.uniform(-3, 3)))
    body, whole = extent(main, accessories=False), extent(main)
    outline = body if carried else whole
    x = MARGIN - outline[0] if left else SIZE - MARGIN - outline[2]
    y = float(rng.uniform(max(MARGIN - whole[1], SIZE - 8 - body[3]), SIZE - MARGIN - max(whole[3], body[3])))
    main = Placed(main.entity, x, y, size, flip, main.tilt)
    free = (x + outline[2] + GAP, SIZE - MARGIN) if left else (MARGIN, x + outline[0] - GAP)
    friend = place_entity(
        _any(noun, color, rng), float(rng.uniform(17, 21)), rng, (free[0], cut, free[1], SIZE - MARGIN)
    )
    return Scene((main, friend), random_backdrop(rng, place))
