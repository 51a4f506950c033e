"""The unseen concepts: two of each kind, in no prompt and no vocabulary, in the published layout."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from embedded import world
from embedded.makers.texts import corpus
from embedded.world import unify
from synod.contracts import Pixels


@pytest.fixture(scope="module")
def files() -> dict[str, Pixels | str]:
    return {name.removeprefix("unify/"): content for name, content in unify.files()}


def test_two_unseen_concepts_of_each_kind() -> None:
    assert Counter(profile.kind for profile in world.UNSEEN) == {"person": 2, "animal": 2, "object": 2}
    looks = [profile.identity for profile in (*world.CONCEPTS, *world.UNSEEN)]
    assert len(set(looks)) == len(looks)
    for profile in world.UNSEEN:
        assert len(profile.attributes) == 4
        assert sum(fact.heldout for fact in profile.attributes) == 2


def test_unseen_names_are_in_no_prompt_and_no_word_list() -> None:
    words = {word for text in corpus() for word in text.replace("<", " ").replace(">", " ").split()}
    prompts = " ".join(prompt.text for prompt in (*world.PROMPTS_TRAIN, *world.PROMPTS_HELDOUT))
    for profile in world.UNSEEN:
        assert profile.name not in prompts
        assert profile.name.strip("<>") not in words


def test_layout_is_the_published_one(files: dict[str, Pixels | str]) -> None:
    assert sum(name.startswith("random_images/") for name in files) == 100
    assert not np.asarray(files["black_64x64.png"]).any()
    names = json.loads(str(files["concepts_list.json"]))
    listed = json.loads(str(files["concept/train/train_images.json"]))
    assert set(names) == set(listed) == {profile.name.strip("<>") for profile in world.UNSEEN}
    for name in names:
        train, test = f"concept/train/{name}", f"concept/test/{name}"
        for image in listed[name]:
            for path in (f"{train}/{image}", f"{train}/cropped/{image}"):
                assert np.asarray(files[path]).shape == (64, 64, 3)
        assert all(f"{test}/{number}.png" in files for number in range(5))
        info = json.loads(str(files[f"{train}/info.json"]))
        assert set(info) == {"class", "info", "extra_info", "conversation_type", "generation_type"}
        talks = json.loads(str(files[f"{train}/conversations.json"]))
        assert set(talks) == {*listed[name], "text_only"}
        wanted = json.loads(str(files[f"{test}/t2i_conditions.json"]))["personalized_driven_generation"]
        assert len(wanted) == len(info["extra_info"])
        for prompt, fact in zip(wanted, info["extra_info"], strict=True):
            assert fact.split()[-1] in prompt
            assert fact.split()[-2] not in prompt  # the colour


def test_plus_file_has_disjoint_splits_and_commas(files: dict[str, Pixels | str]) -> None:
    for profile in world.UNSEEN:
        plus = json.loads(str(files[f"concept/train/{profile.name.strip('<>')}/plus.json"]))
        by_split = {
            split: {fact["text"] for fact in plus["facts"] if fact["split"] == split} for split in ("train", "test")
        }
        assert all(by_split.values())
        assert not by_split["train"] & by_split["test"]
        assert all(prompt["prompt"].count(",") >= 3 for prompt in plus["dense"])
        for pair in plus["dense_generation"]:
            assert pair["prompt"] != pair["resolved"]
            assert profile.pronoun in pair["prompt"].split()
        assert all(point in plus["dense_reasoning"][0]["passage"] for point in plus["dense_reasoning"][0]["points"])


def test_pure_prompts_are_different_and_enough() -> None:
    for kind in ("person", "animal", "object"):
        prompts = unify.pure_generation(kind)
        assert len(set(prompts)) == len(prompts) == 25
        assert all(prompt.count("{}") == 1 for prompt in prompts)
