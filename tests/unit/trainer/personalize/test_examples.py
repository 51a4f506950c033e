"""What an epoch trains on: drawn again in each one, reproducibly, and never the same crop for ever."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from tests.unit.trainer.personalize.tiny_concept import noise
from trainer.personalize import examples
from trainer.personalize.examples import ItemKind
from trainer.personalize.records import ConceptRecord

ALL: frozenset[ItemKind] = frozenset({"positive", "random", "hard", "conversation", "text_only"})


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(list(seed) or 0)


def test_questions_of_each_kind_are_counted(concept: ConceptRecord) -> None:
    found = examples.questions(concept, ALL, rng())
    assert Counter(item.kind for item in found) == {"positive": 12, "random": 12, "conversation": 1, "text_only": 1}
    positive = [item for item in found if item.kind == "positive"]
    assert Counter(item.image for item in positive) == dict.fromkeys(concept.train, 4)
    assert set(Counter(item.query for item in positive).values()) == {6}
    assert {item.answer for item in positive} == {"Yes."}
    negative = [item for item in found if item.kind == "random"]
    assert {item.image for item in negative} == set(concept.random)
    assert {item.answer for item in negative} == {"No."}
    assert next(item for item in found if item.kind == "text_only").image is None
    assert {item.kind for item in examples.questions(concept, {"random"}, rng())} == {"random"}
    more = Counter(item.kind for item in examples.questions(concept, ALL, rng(), text_repeats=3))
    assert more == {"positive": 12, "random": 12, "conversation": 1, "text_only": 3}


def test_every_negative_and_question_is_used_in_turn(concept: ConceptRecord) -> None:
    """Also if an epoch has room for a part of them: here for 12 of 30."""
    negatives = tuple(Path(f"{i}.png") for i in range(30))
    many = replace(concept, random=negatives, recognition=tuple(f"question {i}" for i in range(30)))
    epochs = [examples.questions(many, {"random"}, rng(i)) for i in range(40)]
    for found in epochs:
        assert len({item.image for item in found}) == len({item.query for item in found}) == len(found) == 12
    counts = Counter(item.image for found in epochs for item in found)
    assert set(counts) == set(negatives)
    assert max(counts.values()) < 16 + 5 * 4, "each is expected 16 times, with a standard deviation below 4"
    assert {item.query for found in epochs for item in found} == set(many.recognition)


def test_questions_follow_from_seed_and_epoch(concept: ConceptRecord) -> None:
    first = examples.questions(concept, ALL, rng(1, 2, 3))
    assert first == examples.questions(concept, ALL, rng(1, 2, 3))
    assert first != examples.questions(concept, ALL, rng(1, 2, 4))


def test_crops_and_mirrors_are_those_of_the_public_code() -> None:
    image, seen, mirrored = noise(3, 20, 30), set(), 0
    side, short = 16, 18  # 1.1 * 16
    resized = np.asarray(Image.fromarray(image).resize((27, short), Image.Resampling.BICUBIC))
    windows = {
        resized[top : top + side, left : left + side].tobytes(): (top, left)
        for top in range(short - side + 1)
        for left in range(27 - side + 1)
    }
    flips = {np.frombuffer(key, np.uint8).reshape(side, side, 3)[:, ::-1].tobytes(): v for key, v in windows.items()}
    draws = 800
    for i in range(draws):
        found = examples.cropped(image, side, rng(i))
        assert found.shape == (side, side, 3)
        key = found.tobytes()
        mirrored += key in flips
        seen.add(windows.get(key) or flips[key])
    assert len(seen) == len(windows) == 36
    assert abs(mirrored / draws - 0.25) < 4 * math.sqrt(0.25 * 0.75 / draws)


def test_masks_follow_the_cosine_schedule() -> None:
    masked = examples.masks(4000, 16, rng())
    counts = masked.sum(1)
    assert counts.min() == 1
    assert counts.max() == 16
    assert abs(counts.mean() - 16 * 2 / math.pi) < 0.3  # E cos(pi u / 2) = 2 / pi
    expected = np.maximum(1, np.round(16 * np.cos(0.5 * math.pi * rng().random(4000))))
    assert (counts == expected).all()
    assert np.ptp(masked.mean(0)) < 0.05  # no position is preferred


def test_a_tenth_of_the_prompts_is_dropped() -> None:
    found = examples.prompts("a photo", 4000, rng())
    assert set(found) == {"a photo", ""}
    assert abs(found.count("") / 4000 - 0.1) < 0.02


def test_the_shorter_flow_begins_again_in_another_order() -> None:
    flow = examples.cycled(range(50), rng())
    passes = [[next(flow) for _ in range(50)] for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(50))
    assert passes[0] != passes[1]
