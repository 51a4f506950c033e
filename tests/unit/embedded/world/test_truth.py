"""A render's ground truth agrees with its pixels and its prompt."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from embedded import world
from embedded.world.layout import extent, place_entity

COLOR_VALUES = np.array(list(world.COLORS.values()), float)


def shown_color(render: world.Render, mask: np.ndarray) -> str:
    """Return the most common nearest colour among the mask's pixels."""
    pixels = render.image[mask].astype(float)
    nearest = ((pixels[:, None] - COLOR_VALUES) ** 2).sum(-1).argmin(1)
    return list(world.COLORS)[np.bincount(nearest, minlength=10).argmax()]


def genevals_relations(a: world.Instance, b: world.Instance) -> set[str]:
    """Restate GenEval's rule in its own steps, on boxes as corner pairs: a is <relation> b."""
    boxes = np.array([[a.box[:2], a.box[2:]], [b.box[:2], b.box[2:]]])
    centre_a, centre_b = boxes.mean(axis=1)
    offset = centre_a - centre_b
    sizes = np.abs(np.diff(boxes, axis=1))[:, 0]
    moved = np.maximum(np.abs(offset) - 0.1 * sizes.sum(0), 0) * np.sign(offset)
    if np.all(np.abs(moved) < 1e-3):
        return set()
    dx, dy = moved / np.linalg.norm(offset)
    held = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in held.items() if holds}


def test_masks_fill_their_boxes_and_agree_with_the_labels(cases):
    for _, _, render in cases:
        assert render.image.shape == (64, 64, 3)
        assert render.image.dtype == render.labels.dtype == np.uint8
        covered = np.zeros((64, 64), bool)
        for thing in render.instances:
            ys, xs = np.nonzero(thing.mask)
            assert thing.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert not (covered & thing.mask).any()
            covered |= thing.mask
            names = {world.LABELS[i] for i in np.unique(render.labels[thing.mask])}
            assert names == ({"person", "face"} if thing.class_name == "person" else {thing.class_name})
        accessory = render.labels == world.LABELS.index("accessory")
        assert ((render.labels != 0) == (covered | accessory)).all()
        assert accessory.any() == any(thing.accessories for thing in render.instances)


def test_rendered_colors_match_their_names(cases):
    colored = [
        (render, thing)
        for _, _, render in cases
        for thing in render.instances
        if thing.color is not None and thing.concept is None
    ]
    right = sum(shown_color(render, thing.mask) == thing.color for render, thing in colored)
    assert len(colored) > 500
    assert right / len(colored) >= 0.99


def test_accessories_are_large_and_have_their_color(cases):
    worn = [(p, r) for p, _, r in cases if p.accessories]
    masks = [render.labels == world.LABELS.index("accessory") for _, render in worn]
    assert min(mask.sum() for mask in masks) >= 60
    right = sum(shown_color(r, mask) == p.accessories[0][1] for (p, r), mask in zip(worn, masks, strict=True))
    assert right / len(worn) >= 0.99


def test_geneval_scenes_satisfy_their_metadata_exactly(cases):
    for prompt, _, render in cases:
        if prompt.geneval is None:
            continue
        wanted = Counter({clause.class_name: clause.count for clause in prompt.geneval.include})
        assert Counter(thing.class_name for thing in render.instances) == wanted, prompt.text
        for clause in prompt.geneval.include:
            things = [thing for thing in render.instances if thing.class_name == clause.class_name]
            assert clause.color is None or [thing.color for thing in things] == [clause.color]
            if clause.position is not None:
                relation, index = clause.position
                (target,) = (t for t in render.instances if t.class_name == prompt.geneval.include[index].class_name)
                assert genevals_relations(things[0], target) == {relation}
        for clause in prompt.geneval.exclude:
            assert wanted[clause.class_name] < clause.count


def test_objects_are_connected_and_three_pixels_apart(cases):
    for prompt, _, render in cases:
        boxes = [thing.box for thing in render.instances]
        assert all(world.gap(a, b) >= 3 for i, a in enumerate(boxes) for b in boxes[:i]), prompt.text
        if prompt.geneval is not None:
            for thing in render.instances:
                assert ndimage.label(thing.mask, np.ones((3, 3)))[1] == 1, prompt.text


def test_concept_scenes_satisfy_their_prompts(cases):
    for prompt, scene, render in cases:
        if prompt.concept is None:
            continue
        profile = world.profile_of(prompt.concept)
        main = render.instances[0]
        assert (main.concept, main.class_name, main.identity) == (profile.name, profile.class_word, profile.identity)
        assert main.accessories == prompt.accessories
        assert [(t.color, t.class_name) for t in render.instances[1:]] == [prompt.companion] * (len(scene.placed) - 1)
        assert prompt.place is None or scene.backdrop.place == prompt.place


def test_faces_of_person_concepts_are_wide_enough(cases):
    for _, _, render in cases:
        for thing in render.instances:
            assert (thing.face_box is None) == (thing.class_name != "person")
            if thing.face_box is not None:
                x0, y0, x1, y1 = thing.face_box
                assert (render.labels[int(y0) : int(y1), int(x0) : int(x1)] == world.LABELS.index("face")).any()
                assert thing.concept is None or x1 - x0 >= 18


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(world.CLASSES), st.floats(16, 60))
def test_every_individual_is_inside_the_image(seed, class_name, size):
    rng = np.random.default_rng(seed)
    look = world.random_identity(class_name, rng)
    worn = ((world.ACCESSORIES[seed % 6], tuple(world.COLORS)[seed % 10]),)
    placed = place_entity(world.Entity(class_name, None, look, worn), size, rng)
    x0, y0, x1, y1 = extent(placed)
    assert min(x0, y0) >= 1.99
    assert max(x1, y1) <= 62.01
    (thing,) = world.render(world.Scene((placed,), world.Backdrop(0)), rng).instances
    assert thing.mask.any()


@settings(max_examples=100, deadline=None)
@given(*[st.tuples(st.floats(0, 40), st.floats(0, 40), st.floats(1, 30), st.floats(1, 30)) for _ in range(2)])
def test_relation_equals_genevals_rule(a, b):
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (a, b)]
    held = {name for name, value in world.relation(*boxes).items() if value > 0.5}
    instances = [world.Instance("ball", None, box, np.zeros((64, 64), bool), None, None, (), None) for box in boxes]
    assert held == genevals_relations(*instances)


def test_unknown_class_is_named():
    with pytest.raises(ValueError, match="'dragon'"):
        world.random_identity("dragon", np.random.default_rng(0))
