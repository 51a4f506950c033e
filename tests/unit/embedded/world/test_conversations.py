"""Questions about a concept's images: answers are true, visible and distinct."""

from __future__ import annotations

import pytest

from embedded import world
from embedded.world.json_records import prompt_json


def test_answers_equal_hand_written_ones():
    answers = dict(world.conversations(world.profile_of("<bo>")))
    assert answers == {
        "what does <bo> look like?": "<bo> is a brown dog with floppy ears, a green collar and white socks.",
        "what is <bo>?": "<bo> is a dog.",
        "what color is <bo>?": "<bo> is brown.",
        "what details does <bo> have?": "<bo> has floppy ears, a green collar and white socks.",
    }
    for name, head in (("<cleo>", "tied black hair"), ("<dov>", "a bald head")):
        answers = dict(world.conversations(world.profile_of(name)))
        assert answers[f"what hair does {name} have?"] == f"{name} has {head}."


@pytest.mark.parametrize("profile", world.CONCEPTS, ids=lambda profile: profile.name)
def test_answers_differ_and_contain_no_fact(profile):
    talks = world.conversations(profile)
    assert len({query for query, _ in talks}) == len({answer for _, answer in talks}) == len(talks) == 4
    for query, answer in talks:
        assert profile.name in query
        assert answer.startswith(profile.name)
        assert not any(fact.accessory in answer.split() for fact in profile.attributes)


def test_every_concept_prompt_has_its_explicit_form():
    for prompt in (*world.PROMPTS_TRAIN, *world.PROMPTS_HELDOUT):
        line = prompt_json(prompt)
        assert ("fact" in line) == bool(prompt.accessories)
        assert ("resolved" in line) == (prompt.concept is not None)
        if prompt.accessories:
            ((accessory, color),) = prompt.accessories
            fact = world.profile_of(prompt.concept).attributes[line["fact"]]
            assert (fact.accessory, fact.color) == (accessory, color)
            assert f"{color} {accessory}" in line["resolved"]
            assert prompt.concept not in line["resolved"]
