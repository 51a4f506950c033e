"""BLEU on characters: nltk is the second implementation, and cases worked by hand."""

from __future__ import annotations

import math
import random

import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from services.scorers.bleu import WEIGHTS, Bleu, BleuSettings, bleu
from synod.contracts import Reasoning, Score, ScoreFailure, ScoreItem

ALPHABET = "aab c.é中"


def test_equal_to_nltk_on_random_texts() -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choices(ALPHABET, k=rng.choice((0, 1, 2, 3, 7, 30)))) for _ in range(8000)]
    values = set()
    for start in range(0, len(texts), 4):
        reply, *references = texts[start : start + 2 + start // 4 % 3]
        expected = sentence_bleu(references, reply, WEIGHTS, SmoothingFunction().method1)
        assert bleu(references, reply) == pytest.approx(expected, abs=1e-12), (references, reply)
        values.add(round(expected, 6))
    assert len(values) > 100
    assert {0.0, 1.0} <= values


@pytest.mark.parametrize(
    ("references", "reply", "expected"),
    [
        (("a red hat",), "a red hat", 1.0),
        (("ab",), "", 0.0),
        (("",), "ab", 0.0),
        (("ab",), "cd", 0.0),
        (("a",), "a", (0.1 / 1) ** 0.3),  # no bigram: 0.1 of 1
        (("ab",), "ba", (0.1 / 1) ** 0.3),  # both letters, not the pair
        (("abcd",), "ab", math.exp(1 - 4 / 2)),  # all matches, but half the length
        (("ab",), "abab", (2 / 4) ** 0.7 * (1 / 3) ** 0.3),  # each n-gram as often as the reference has it
        (("ab", "abcd"), "abc", 1.0),  # lengths 2 and 4 are as near: the shorter counts
        (("Yes",), "yes", (2 / 3) ** 0.7 * (1 / 2) ** 0.3),  # case counts
    ],
)
def test_by_hand(references: tuple[str, ...], reply: str, expected: float) -> None:
    assert bleu(references, reply) == pytest.approx(expected, abs=1e-12)


def test_true_segments_are_the_references() -> None:
    scorer = Bleu("bleu", BleuSettings(kind="bleu"))
    segments = ("it is red", "it is blue", "it is small")
    right, none, short = scorer.score(
        [
            ScoreItem(reasoning=Reasoning("it is blue", segments, (1.0, 1.0, 0.0))),
            ScoreItem(reasoning=Reasoning("it is blue", segments, (0.0, 0.0, 0.0))),
            ScoreItem(reasoning=Reasoning("it is blue", segments, (1.0,))),
        ]
    )
    assert right == Score(1.0, {"nearest": "it is blue", "references": 2})
    assert isinstance(none, ScoreFailure)
    assert none.code == "invalid_item"
    assert "no segment of the reasoning is true" in none.message
    assert isinstance(short, ScoreFailure)
    assert "3 segments but 1 truth" in short.message
