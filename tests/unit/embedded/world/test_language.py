"""Prompts: disjoint splits, correct grammar, false prompts that are false."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from embedded import world
from embedded.world.language import NUMBERS, WORD, normal, plural, with_article
from synod.contracts import GenEvalClause, GenEvalMetadata

EVERY = (*world.PROMPTS_TRAIN, *world.PROMPTS_HELDOUT)
NOUNS = {*world.CLASSES, *(plural(noun) for noun in world.CLASSES)}


def test_splits_share_no_prompt_and_no_claim():
    train, heldout = ({normal(p.text) for p in ps} for ps in (world.PROMPTS_TRAIN, world.PROMPTS_HELDOUT))
    assert not train & heldout
    assert len(train) == len(world.PROMPTS_TRAIN)
    assert len(heldout) == len(world.PROMPTS_HELDOUT)
    # Another word order does not evade the split: the claims of GenEval prompts are disjoint, too.
    claimed = [{world.claims(p) for p in ps if p.geneval} for ps in (world.PROMPTS_TRAIN, world.PROMPTS_HELDOUT)]
    assert not claimed[0] & claimed[1]


def test_every_task_has_prompts_in_both_splits():
    assert all(len(pool) >= 4 for pool in world.POOLS.values())
    assert set(world.POOLS) == {(task, split) for task in world.TASKS for split in ("train", "heldout")}


def test_held_out_facts_occur_only_in_held_out_prompts():
    held = {(c.name, f.accessory, f.color) for c in world.CONCEPTS for f in c.attributes if f.heldout}
    for prompt in EVERY:
        message = {(prompt.concept, *pair) for pair in prompt.accessories}
        assert bool(message & held) == (bool(message) and prompt.split == "heldout")


@pytest.mark.parametrize(
    ("text", "tag", "include", "exclude"),
    [
        ("a photo of a ball", "single_object", [GenEvalClause("ball", 1)], []),
        ("a photo of three fish", "counting", [GenEvalClause("fish", 3)], [GenEvalClause("fish", 4)]),
        ("a photo of two people", "counting", [GenEvalClause("person", 2)], [GenEvalClause("person", 3)]),
        ("a photo of an orange key", "colors", [GenEvalClause("key", 1, "orange")], []),
        (
            "a photo of a fish above a house",
            "position",
            [GenEvalClause("house", 1), GenEvalClause("fish", 1, None, ("above", 0))],
            [],
        ),
    ],
)
def test_metadata_have_genevals_format(text, tag, include, exclude):
    (prompt,) = (p for p in EVERY if p.text == text)
    assert prompt.geneval == GenEvalMetadata(tag, tuple(include), tuple(exclude))


def test_articles():
    words = [normal(p.text).split() for p in EVERY]
    pairs = {(a, b) for text in words for a, b in pairwise(text) if a in ("a", "an")}
    assert all((article == "an") == (word[0] in "aeiou") for article, word in pairs)
    assert ("an", "orange") in pairs


def falsehoods():
    rng = np.random.default_rng(3)
    for prompt in EVERY:
        for true in (prompt.text, world.resolve(prompt)):
            yield prompt, true, world.change_one_word(true, rng)


def test_change_one_word_keeps_grammar():
    changed = set()
    for _, true, false in falsehoods():
        before, after = WORD.findall(true), WORD.findall(false)
        assert len(before) == len(after)
        ((i, old, new),) = [(i, a, b) for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        changed.add(old)
        if before[i - 1] in ("a", "an"):
            assert with_article(new).split()[0] == before[i - 1]
        if before[i - 1] in NUMBERS.values():
            assert new in {plural(noun) for noun in world.CLASSES}
    assert {"red", "three", "left", "above", "hat", "balloon", "ball", "<bo>", "meadow"} <= changed


def test_change_one_word_gives_a_false_prompt():
    """A scene shows only what its prompt mentions, so that a new colour, noun, number or place is false."""
    families = [{*world.COLORS}, NOUNS, {*NUMBERS.values()}, {*world.ACCESSORIES}, {*world.PLACES}]
    for prompt, true, false in falsehoods():
        old, new = (set(WORD.findall(t)) for t in (true, false))
        (word,) = new - old
        if word in ("left", "right", "above", "below"):
            continue  # the opposite of a relation that holds; layouts hold one relation only
        if word.startswith("<"):
            assert world.profile_of(word).class_word != world.profile_of(prompt.concept).class_word
            continue
        assert any(word in family for family in families)
        assert word not in WORD.findall(f"{prompt.text} {world.resolve(prompt)}")


def test_wrong_prompts_have_the_task_and_other_claims():
    rng = np.random.default_rng(4)
    by_text = {p.text: p for p in EVERY}
    for prompt in EVERY[::3]:
        other = by_text[world.wrong_prompt(prompt, rng)]
        assert (other.task, other.split) == (prompt.task, prompt.split)
        assert not world.claims(other) <= world.claims(prompt)


def test_equal_meanings_are_equal_claims():
    by_text = {p.text: p for p in EVERY}
    pairs = [
        (p, by_text[f"a photo of a {b} right of a {a}"])
        for p in EVERY
        if p.task == "position" and " left of " in p.text
        for a, b in [(p.geneval.include[1].class_name, p.geneval.include[0].class_name)]
    ]
    assert len(pairs) > 50
    assert all(world.claims(p) == world.claims(q) for p, q in pairs)
    assert all(p.split == q.split for p, q in pairs)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("<bo> wearing its hat", "a dog wearing a red hat"),
        ("a photo of <cleo> wearing her ribbon", "a photo of a person wearing an orange ribbon"),
        ("a photo of <zip>", "a photo of a car"),
        ("a photo of a red ball", "a photo of a red ball"),
        ("<bo> wearing its kite", "a dog wearing a kite"),  # not a fact of <bo>: no colour is known
    ],
)
def test_resolve(text, caption):
    assert world.resolve(text) == caption


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_questions_have_one_right_segment_of_five(split):
    questions = world.attribute_questions(split)
    assert len(questions) == 2 * 5 * len(world.CONCEPTS)
    for question in questions:
        assert len(set(question.segments)) == len(question.truth) == 5
        assert sorted(question.truth) == [0, 0, 0, 0, 1]
        right = question.segments[question.truth.index(1.0)]
        color, accessory = right.split()[-2:]
        assert all(word in question.text for word in (question.concept, color, accessory))
        assert right not in question.text
        (fact,) = (f for f in world.profile_of(question.concept).attributes if f.sentence == right)
        assert fact.heldout == (split == "heldout")
