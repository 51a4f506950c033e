"""Concepts: enough of each kind, recognisable, and silent about their facts in training renders."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from embedded import world


def test_there_are_four_of_every_kind_and_more_than_twelve():
    kinds = Counter(card.kind for card in world.CONCEPTS)
    assert min(kinds[kind] for kind in ("person", "animal", "object")) >= 4
    assert len({card.name for card in world.CONCEPTS}) == len({card.identity for card in world.CONCEPTS}) >= 12
    assert len({card.info for card in world.CONCEPTS}) == len(world.CONCEPTS)


@pytest.mark.parametrize("card", world.CONCEPTS, ids=lambda card: card.name)
def test_half_of_the_facts_are_held_out_and_none_is_drawn(card):
    assert len(card.attributes) >= 4
    assert sum(fact.heldout for fact in card.attributes) * 2 == len(card.attributes)
    assert len({fact.accessory for fact in card.attributes}) == len(card.attributes)
    renders = world.training_renders(card)
    assert len(renders) >= 10
    assert len({render.image.tobytes() for render in renders}) == len(renders)
    for render in renders:
        assert not (render.labels == world.LABELS.index("accessory")).any()
        assert render.instances[0].identity == card.identity


def test_the_same_seed_draws_the_same_bytes():
    def draw(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        return b"".join(world.render(world.sample(rng, task)[0], rng).image.tobytes() for task in world.TASKS)

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_scenes_are_values():
    scenes = [world.sample(np.random.default_rng(8), "dense")[0] for _ in range(2)]
    assert len(set(scenes)) == 1


def test_identities_do_not_repeat():
    rng = np.random.default_rng(9)
    looks = {world.random_identity(kind, rng) for kind in ("person", "animal", "object") for _ in range(200)}
    assert len(looks) == 600
    assert {look.class_name for look in looks} == set(world.CLASSES)
