"""Questions about images: answers are true of the render, and descriptions fit only who they describe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from embedded import world
from embedded.makers.dataset import random_accessories, random_profile
from embedded.world.descriptions import Description
from embedded.world.language import parts
from embedded.world.palette import nearest
from embedded.world.visual_questions import NO, YES, about_accessories, by_description, recognition


def rendered(profile: world.ConceptProfile, seed: int, worn: tuple[tuple[str, str], ...] = ()) -> world.Render:
    rng = np.random.default_rng(seed)
    return world.render(world.concept_scene(profile, rng, worn), rng)


def test_answers_of_a_known_image_equal_hand_written_ones() -> None:
    shown = rendered(world.profile_of("<bo>"), 0, (("hat", "red"),))
    answers = dict(pair for seed in range(30) for pair in world.questions(shown, np.random.default_rng(seed)))
    assert answers["what color is the hat?"] == "the hat is red."
    assert answers["is there a hat?"] == YES
    assert answers["is there a kite?"] == NO
    assert answers["is there a dog?"] == YES
    assert answers["what color is <bo>?"] == "<bo> is brown."
    assert answers["is <bo> brown?"] == YES
    assert answers["does <bo> have floppy ears?"] == YES
    assert answers["is this <bo>?"] == YES
    assert answers["is this <rex>?"] == NO
    assert answers["what does <bo> wear or hold?"] == "<bo> has a red hat."


def test_counts_and_colors_of_scenes_are_the_truth() -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        shown = world.render(world.sample(rng, "counting")[0], rng)
        names = [instance.class_name for instance in shown.instances]
        for query, answer in world.questions(shown, rng):
            if query.startswith("how many"):
                assert answer.split()[0] == {2: "two", 3: "three", 4: "four"}[len(names)]
            if query.startswith("is there a"):
                assert (answer == YES) == (query.rstrip("?").split()[-1] in names)


def test_foreign_name_does_not_change_the_answer() -> None:
    """A random individual is described by what its image shows, under any concept's name."""
    rng = np.random.default_rng(4)
    under_a_name = 0
    for seed in range(80):
        profile = random_profile("dog", rng)
        for query, answer in world.questions(rendered(profile, seed), rng):
            if query.startswith("what color is <"):
                under_a_name += 1
                assert answer.endswith(f" is {nearest(profile.identity.primary)}.")
            if query.startswith(("is this <", "can you see <")):
                assert answer == NO
    assert under_a_name > 10


@pytest.mark.parametrize("name", ["dog", "person", "cup", "star"])
def test_description_fits_whom_it_describes(name: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        look, other = (world.random_identity(name, rng) for _ in range(2))
        said = world.describe_some(look, rng)
        assert said.fits(look)
        assert said.text.startswith(("a ", "an "))
        assert not replace(said, class_name="car" if name != "car" else "dog").fits(look)
        missing = [part for part in parts(other) if part not in parts(look)]
        if missing:
            assert not replace(said, details=(missing[0],)).fits(look)
    assert Description("dog", "red", ()).text == "a red dog"


def test_about_half_of_the_yes_or_no_answers_are_yes() -> None:
    rng = np.random.default_rng(6)
    known, described, worn = [], [], []
    for seed in range(150):
        profile = world.CONCEPTS[seed % len(world.CONCEPTS)]
        shown = rendered(profile, seed)
        known.append(recognition(shown.instances[0], rng)[1] == YES)
        described.append(by_description(profile.identity, rng)[1] == YES)
        worn.append(about_accessories("it", random_accessories(rng), rng)[-1][1] == YES)
    assert 0.35 < np.mean(known) < 0.65
    assert 0.35 < np.mean(described) < 0.7
    assert 0.2 < np.mean(worn) < 0.65


def test_prompt_of_a_description_has_commas_when_it_is_long() -> None:
    rng = np.random.default_rng(7)
    text = world.described_prompt("a red dog with round ears", (("hat", "blue"),), ("green", "cup"), "beach", rng)
    assert text.endswith("a red dog with round ears, wearing a blue hat, next to a green cup, on the beach")
    dense = "a photo of <bo> wearing a red hat next to a blue ball on the beach"
    assert world.with_commas(dense) == "a photo of <bo>, wearing a red hat, next to a blue ball, on the beach"
    assert world.with_commas("a photo of <bo> with a red kite next to a red cup in the room").count(",") == 3
