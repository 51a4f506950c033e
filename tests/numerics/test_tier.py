"""TIER (eq. 30): hand-worked values, the known figures of both forms, and the rules where eq. 30 is silent."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from services.scorers import tier
from services.scorers.tier import TierSettings
from synod.contracts import Reasoning, Score, ScoreFailure, ScoreItem


class Words:
    """An encoder with a known geometry: a text is the normalised sum of its words' axes."""

    AXES = ("red", "hat", "blue", "scarf")

    def encode(self, texts: Sequence[str], pooling: str) -> np.ndarray:
        rows = np.array([[text.split().count(word) for word in self.AXES] + [1e-9] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def scorer(mode: str, temperature: float = 0.05) -> tier.Tier:
    settings = TierSettings(kind="tier", model="unused/id", mode=mode, temperature=temperature)  # type: ignore[arg-type]
    return tier.Tier("tier", Words(), settings)


def value(
    mode: str, text: str, segments: tuple[str, ...], truth: tuple[float, ...], temperature: float = 0.05
) -> Score:
    (outcome,) = scorer(mode, temperature).score([ScoreItem(reasoning=Reasoning(text, segments, truth))])
    assert isinstance(outcome, Score)
    return outcome


def case(length: int, right: bool) -> tuple[np.ndarray, np.ndarray]:
    """An anisotropic encoder: the chosen segment at cosine .92, all others at .75; y marks the first."""
    similarities, truth = np.full(length, 0.75), np.zeros(length)
    similarities[0 if right else 1], truth[0] = 0.92, 1.0
    return similarities, truth


@pytest.mark.parametrize(("length", "expected"), [(2, 0.62), (5, 0.25), (8, 0.007), (16, -0.453)])
def test_paper_form_mostly_measures_the_length(length: int, expected: float) -> None:
    assert tier.paper(*case(length, right=True)) == pytest.approx(expected, abs=0.006)


def test_paper_form_goes_negative_for_eight_segments() -> None:
    assert tier.paper(*case(8, right=False)) == pytest.approx(-0.035, abs=5e-4)


@pytest.mark.parametrize(("length", "right", "wrong"), [(5, 0.991, 0.139), (16, 0.941, 0.296)])
def test_softmax_ranks_right_above_wrong_at_any_length(length: int, right: float, wrong: float) -> None:
    assert tier.softmax(*case(length, True), 0.05)[0] == pytest.approx(right, abs=5e-4)
    assert tier.softmax(*case(length, False), 0.05)[0] == pytest.approx(wrong, abs=5e-4)


def test_softmax_worked_by_hand() -> None:
    # cosines of "red hat" to "red" and "blue": 1/sqrt(2) and 0; tau = 1/sqrt(2) gives p = (e, 1) / (e + 1)
    outcome = value("softmax", "red hat", ("red", "blue"), (1.0, 0.0), temperature=2**-0.5)
    e = np.e
    assert outcome.value == pytest.approx(1 - (1 / (e + 1)) ** 2, abs=1e-6)
    assert outcome.detail["similarities"] == pytest.approx([2**-0.5, 0.0], abs=1e-6)
    assert outcome.detail["probabilities"] == pytest.approx([e / (e + 1), 1 / (e + 1)], abs=1e-6)


def test_several_true_segments_share_the_target() -> None:
    # equal cosines to both true segments: p = (1/2, 1/2) = y / 2
    assert value("softmax", "red hat", ("red", "hat"), (1.0, 1.0)).value == pytest.approx(1.0, abs=1e-6)


def test_paper_clipped_worked_by_hand() -> None:
    # s = (1/sqrt(2), 0), y = (1, 0): (2 - (1 - 1/sqrt(2))) / 2
    assert value("paper_clipped", "red hat", ("red", "blue"), (1.0, 0.0)).value == pytest.approx(0.5 + 2**-0.5 / 2)
    crowd = ("red",) * 8  # s = 1 eight times, y = 0 but once: (2 - sqrt(7)) / 2 < 0
    assert value("paper_clipped", "red", crowd, (1.0,) + (0.0,) * 7).value == 0.0


@pytest.mark.parametrize("mode", ["softmax", "paper_clipped"])
@pytest.mark.parametrize(
    ("text", "segments", "truth", "expected"),
    [
        ("", (), (), 1.0),
        (" \n", ("red",), (0.0,), 1.0),
        ("", ("red", "hat"), (0.0, 1.0), 0.0),
        ("red", (), (), 0.0),
    ],
)
def test_rules_where_the_equation_is_silent(
    mode: str, text: str, segments: tuple[str, ...], truth: tuple[float, ...], expected: float
) -> None:
    assert value(mode, text, segments, truth).value == expected


def test_a_text_when_no_segment_is_true() -> None:
    assert value("softmax", "red", ("red", "hat"), (0.0, 0.0)).value == 0.0
    assert value("paper_clipped", "red", ("red", "hat"), (0.0, 0.0)).value == pytest.approx(0.5)  # (2 - |(1, 0)|) / 2


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ((1.0,), "2 segments but 1 truth"),
        ((1.0, float("nan")), r"must be in \[0, 1\]"),
        ((1.0, -0.5), r"must be in \[0, 1\]"),
        ((1.0, 2.0), r"must be in \[0, 1\]"),
    ],
)
def test_a_bad_truth_fails_its_item_alone(truth: tuple[float, ...], message: str) -> None:
    bad = ScoreItem(reasoning=Reasoning("red", ("red", "hat"), truth))
    good = ScoreItem(reasoning=Reasoning("red", ("red", "hat"), (1.0, 0.0)))
    first, second = scorer("softmax").score([bad, good])
    assert isinstance(first, ScoreFailure)
    assert first.code == "invalid_item"
    assert re.search(message, first.message)
    assert isinstance(second, Score)


UNIT = arrays.arrays(np.float64, st.integers(1, 16), elements=st.floats(-1, 1))


@given(UNIT, st.integers(1, 2**16 - 1), st.floats(0.01, 2))
def test_softmax_form_stays_in_the_unit_interval(similarities: np.ndarray, bits: int, temperature: float) -> None:
    truth = np.array([float(bits >> i & 1) for i in range(len(similarities))])
    truth[0] = max(truth[0], float(not truth.any()))
    reward, probabilities = tier.softmax(similarities, truth, temperature)
    assert -1e-12 <= reward <= 1 + 1e-12
    assert probabilities.sum() == pytest.approx(1.0)
