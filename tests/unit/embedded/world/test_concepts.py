"""Concepts: enough of each kind, distinct, and without their facts in training renders."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from embedded import world


def test_at_least_four_concepts_of_every_kind():
    kinds = Counter(profile.kind for profile in world.CONCEPTS)
    assert min(kinds[kind] for kind in ("person", "animal", "object")) >= 4
    for field in ("name", "identity", "info"):
        assert len({getattr(profile, field) for profile in world.CONCEPTS}) == len(world.CONCEPTS) >= 12


@pytest.mark.parametrize("profile", world.CONCEPTS, ids=lambda profile: profile.name)
def test_half_the_facts_are_held_out_and_none_is_rendered(profile):
    assert len(profile.attributes) >= 4
    assert sum(fact.heldout for fact in profile.attributes) * 2 == len(profile.attributes)
    assert len({fact.accessory for fact in profile.attributes}) == len(profile.attributes)
    renders = world.training_renders(profile)
    assert len(renders) >= 10
    assert len({render.image.tobytes() for render in renders}) == len(renders)
    for render in renders:
        assert not (render.labels == world.LABELS.index("accessory")).any()
        assert render.instances[0].identity == profile.identity


def test_same_seed_renders_the_same_bytes():
    def draw(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        return b"".join(world.render(world.sample(rng, task)[0], rng).image.tobytes() for task in world.TASKS)

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_scenes_compare_by_value():
    scenes = [world.sample(np.random.default_rng(8), "dense")[0] for _ in range(2)]
    assert len(set(scenes)) == 1


def test_identities_do_not_repeat():
    rng = np.random.default_rng(9)
    looks = {world.random_identity(kind, rng) for kind in ("person", "animal", "object") for _ in range(200)}
    assert len(looks) == 600
    assert {look.class_name for look in looks} == set(world.CLASSES)
