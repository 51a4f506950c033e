"""The tokenizer knows every word of every prompt; training and held-out texts are disjoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from embedded import world
from embedded.makers.prompts import training_prompt
from embedded.makers.texts import HELD_OUT, TOKEN_LIMIT, corpus, scorer_caption, tokenizer
from services.scorers.shared.image_text import to_plain_text
from synod.contracts import Concept


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    tokenizer(corpus(), 32).save_pretrained(folder)
    read: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    return read


def test_tokenizer_covers_every_prompt_within_the_limit(words: PreTrainedTokenizerFast) -> None:
    assert len(words) <= TOKEN_LIMIT
    for prompt in (*world.PROMPTS_TRAIN, *world.PROMPTS_HELDOUT):
        for text in (prompt.text, scorer_caption(prompt.text), world.resolve(prompt)):
            ids = words(text)["input_ids"]
            assert words.unk_token_id not in ids, text
            assert len(ids) <= 32, text


def test_tokenizer_covers_colour_captions(words: PreTrainedTokenizerFast) -> None:
    red, dog = words.convert_tokens_to_ids(["red", "dog"])
    ids = words("a photo of a red-colored dog")["input_ids"]
    assert red in ids
    assert dog in ids
    assert words.unk_token_id not in ids


def test_unknown_word_becomes_the_unknown_token(words: PreTrainedTokenizerFast) -> None:
    assert words("a zeppelin", add_special_tokens=False)["input_ids"].count(words.unk_token_id) == 1


def test_caption_equals_the_scorers_text() -> None:
    for prompt in world.PROMPTS_TRAIN:
        profile = world.profile_of(prompt.concept) if prompt.concept else None
        concept = Concept(profile.kind, profile.class_word, profile.name) if profile else None
        assert scorer_caption(prompt.text) == to_plain_text(prompt.text, concept)


@pytest.mark.parametrize("task", world.TASKS)
def test_training_prompts_are_not_held_out(task: str) -> None:
    rng = np.random.default_rng(0)
    held_claims = {world.claims(p) for p in world.PROMPTS_HELDOUT if p.geneval is not None}
    for _ in range(300):
        prompt = training_prompt(task, rng)
        assert prompt.task == task
        assert prompt.text not in {p.text for p in world.PROMPTS_HELDOUT}
        assert prompt.geneval is None or world.claims(prompt) not in held_claims


def test_held_out_texts_include_every_form() -> None:
    for prompt in world.PROMPTS_HELDOUT:
        assert {prompt.text, scorer_caption(prompt.text), world.resolve(prompt)} <= HELD_OUT
