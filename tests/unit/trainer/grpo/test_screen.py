"""The screen by hand, against a naive reading of its words, and what holds for any scores."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.grpo.screen import Kept, fill, screen

MIXED = [0.9, None, 0.5, 0.6, 0.5, 0.7, None, 0.8]


def test_the_first_that_pass_are_kept_not_the_best() -> None:
    kept = screen(MIXED, 0.5, 3)
    assert kept == Kept(indices=(0, 3, 5), passed=4, drawn=8, judged=6, enough=True, filled=())
    assert kept.pass_rate == pytest.approx(4 / 6)


def test_a_score_at_the_threshold_does_not_pass() -> None:
    assert screen([0.5, 0.5 + 1e-12], 0.5, 1).indices == (1,)


def test_too_few_pass() -> None:
    assert screen(MIXED, 0.75, 3) == Kept((0, 7), passed=2, drawn=8, judged=6, enough=False)


def test_without_a_threshold_all_pass_in_draw_order_scored_or_not() -> None:
    assert screen(MIXED, None, 3) == Kept((0, 1, 2), passed=8, drawn=8, judged=8, enough=True)
    assert screen([None, None], None, 3) == Kept((0, 1), passed=2, drawn=2, judged=2, enough=False)


def test_nothing_scored_has_no_pass_rate() -> None:
    kept = screen([None, None], 0.5, 1)
    assert kept == Kept((), passed=0, drawn=2, judged=0, enough=False)
    assert kept.pass_rate is None
    assert screen([], 0.5, 1).pass_rate is None


def test_fill_takes_the_best_rejected_ties_by_draw_order_unscored_last() -> None:
    kept = screen(MIXED, 0.75, 5)
    assert kept.indices == (0, 7)
    filled = fill(kept, MIXED, 5)  # .7 at 5, .6 at 3, then the first of the two .5
    assert filled == Kept((0, 2, 3, 5, 7), passed=2, drawn=8, judged=6, enough=True, filled=(2, 3, 5))
    assert fill(screen(MIXED, 0.75, 7), MIXED, 7).filled == (1, 2, 3, 4, 5)
    assert filled.pass_rate == kept.pass_rate


def test_fill_leaves_a_full_group_alone_and_keeps_what_there_is() -> None:
    full = screen(MIXED, 0.5, 3)
    assert fill(full, MIXED, 3) is full
    short = fill(screen([0.1, None], 0.5, 9), [0.1, None], 9)
    assert short == Kept((0, 1), passed=0, drawn=2, judged=1, enough=False, filled=(0, 1))


SCORES = st.lists(st.none() | st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0]) | st.floats(-1, 1), max_size=40)
THRESHOLDS = st.none() | st.sampled_from([0.0, 0.25]) | st.floats(-1, 1)
GROUPS = st.integers(1, 12)


@given(SCORES, THRESHOLDS, GROUPS)
def test_the_screen_is_what_its_words_say(scores: list[float | None], threshold: float | None, group: int) -> None:
    kept = screen(scores, threshold, group)
    expected: list[int] = []
    passed = 0
    for index, score in enumerate(scores):
        if threshold is None or (score is not None and score > threshold):
            passed += 1
            if len(expected) < group:
                expected.append(index)
    assert kept.indices == tuple(expected)
    assert kept.passed == passed
    assert kept.enough == (passed >= group)
    assert kept.drawn == len(scores) >= kept.judged >= kept.passed


@given(SCORES, THRESHOLDS, GROUPS, st.integers(0, 40))
def test_later_previews_change_no_earlier_choice(
    scores: list[float | None], threshold: float | None, group: int, cut: int
) -> None:
    early, late = screen(scores[:cut], threshold, group), screen(scores, threshold, group)
    assert late.indices[: len(early.indices)] == early.indices
    assert not early.enough or late.indices == early.indices


@given(SCORES, GROUPS)
def test_a_screen_below_every_score_is_no_screen(scores: list[float | None], group: int) -> None:
    measured = [score for score in scores if score is not None]
    low, none = screen(measured, -2.0, group), screen(measured, None, group)
    assert low == none
    assert none.indices == tuple(range(min(group, len(measured))))


@given(SCORES, THRESHOLDS, GROUPS)
def test_a_filled_group_is_as_full_as_can_be_and_no_rejected_one_was_better(
    scores: list[float | None], threshold: float | None, group: int
) -> None:
    kept = screen(scores, threshold, group)
    filled = fill(kept, scores, group)
    assert len(filled.indices) == min(group, len(scores))
    assert filled.enough == (len(scores) >= group)
    assert list(filled.indices) == sorted(set(filled.indices))
    assert set(filled.indices) == set(kept.indices) | set(filled.filled)
    assert not set(kept.indices) & set(filled.filled)
    left = [i for i in range(len(scores)) if i not in filled.indices]
    for added in filled.filled:
        for other in left:
            mine, theirs = scores[added], scores[other]
            assert theirs is None or (mine is not None and (mine > theirs or (mine == theirs and added < other)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: screen([0.5], 0.1, 0), "group is 0"),
        (lambda: screen([0.5, math.nan], 0.1, 1), "score 1 is nan"),
        (lambda: screen([-math.inf], None, 1), "score 0 is -inf"),
        (lambda: fill(screen([0.1], 0.5, 2), [0.1, 0.2], 2), "2 scores, but the screen saw 1"),
    ],
)
def test_what_means_nothing_is_refused_with_its_value(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
