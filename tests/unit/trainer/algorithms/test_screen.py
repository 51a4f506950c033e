"""The screen by hand, against a naive loop, and its properties for any scores."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.algorithms.screen import ScreenResult, best_and_worst, extremes, screen, top_up

MIXED = [0.9, None, 0.5, 0.6, 0.5, 0.7, None, 0.8]


@pytest.mark.parametrize(
    ("scores", "threshold", "size", "expected", "pass_rate"),
    [
        (MIXED, 0.5, 3, ScreenResult((0, 3, 5), passed=4, drawn=8, num_scored=6, is_full=True), 4 / 6),
        (MIXED, 0.75, 3, ScreenResult((0, 7), passed=2, drawn=8, num_scored=6, is_full=False), 2 / 6),
        (MIXED, None, 3, ScreenResult((0, 1, 2), passed=8, drawn=8, num_scored=8, is_full=True), 1.0),
        ([None, None], None, 3, ScreenResult((0, 1), passed=2, drawn=2, num_scored=2, is_full=False), 1.0),
        ([None, None], 0.5, 1, ScreenResult((), passed=0, drawn=2, num_scored=0, is_full=False), None),
        ([], 0.5, 1, ScreenResult((), passed=0, drawn=0, num_scored=0, is_full=False), None),
    ],
)
def test_screen_by_hand(
    scores: list[float | None], threshold: float | None, size: int, expected: ScreenResult, pass_rate: float | None
) -> None:
    kept = screen(scores, threshold, size)
    assert (kept, kept.pass_rate) == (expected, pass_rate)


def test_top_up_order() -> None:
    kept = screen(MIXED, 0.75, 5)
    assert kept.indices == (0, 7)
    filled = top_up(kept, MIXED, 5)  # .7 at 5, .6 at 3, then the first of the two .5
    assert filled == ScreenResult((0, 2, 3, 5, 7), passed=2, drawn=8, num_scored=6, is_full=True, topped_up=(2, 3, 5))
    assert top_up(screen(MIXED, 0.75, 7), MIXED, 7).topped_up == (1, 2, 3, 4, 5)
    assert filled.pass_rate == kept.pass_rate


def test_top_up_of_full_and_short_groups() -> None:
    full = screen(MIXED, 0.5, 3)
    assert top_up(full, MIXED, 3) is full
    short = top_up(screen([0.1, None], 0.5, 9), [0.1, None], 9)
    assert short == ScreenResult((0, 1), passed=0, drawn=2, num_scored=1, is_full=False, topped_up=(0, 1))


SCORES = st.lists(st.none() | st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0]) | st.floats(-1, 1), max_size=40)
THRESHOLDS = st.none() | st.sampled_from([0.0, 0.25]) | st.floats(-1, 1)
GROUPS = st.integers(1, 12)


@given(SCORES, THRESHOLDS, GROUPS)
def test_screen_against_a_naive_loop(scores: list[float | None], threshold: float | None, group_size: int) -> None:
    kept = screen(scores, threshold, group_size)
    expected: list[int] = []
    passed = 0
    for index, score in enumerate(scores):
        if threshold is None or (score is not None and score > threshold):
            passed += 1
            if len(expected) < group_size:
                expected.append(index)
    assert kept.indices == tuple(expected)
    assert kept.passed == passed
    assert kept.is_full == (passed >= group_size)
    assert kept.drawn == len(scores) >= kept.num_scored >= kept.passed


@given(SCORES, THRESHOLDS, GROUPS, st.integers(0, 40))
def test_later_previews_do_not_change_earlier_choices(
    scores: list[float | None], threshold: float | None, group_size: int, cut: int
) -> None:
    early, late = screen(scores[:cut], threshold, group_size), screen(scores, threshold, group_size)
    assert late.indices[: len(early.indices)] == early.indices
    assert not early.is_full or late.indices == early.indices


@given(SCORES, GROUPS)
def test_a_threshold_below_every_score_keeps_all(scores: list[float | None], group_size: int) -> None:
    measured = [score for score in scores if score is not None]
    low, none = screen(measured, -2.0, group_size), screen(measured, None, group_size)
    assert low == none
    assert none.indices == tuple(range(min(group_size, len(measured))))


@given(SCORES, THRESHOLDS, GROUPS)
def test_top_up_takes_the_best_rejected_previews(
    scores: list[float | None], threshold: float | None, group_size: int
) -> None:
    kept = screen(scores, threshold, group_size)
    filled = top_up(kept, scores, group_size)
    assert len(filled.indices) == min(group_size, len(scores))
    assert filled.is_full == (len(scores) >= group_size)
    assert list(filled.indices) == sorted(set(filled.indices))
    assert set(filled.indices) == set(kept.indices) | set(filled.topped_up)
    assert not set(kept.indices) & set(filled.topped_up)
    left = [i for i in range(len(scores)) if i not in filled.indices]
    for added in filled.topped_up:
        for other in left:
            mine, theirs = scores[added], scores[other]
            assert theirs is None or (mine is not None and (mine > theirs or (mine == theirs and added < other)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: screen([0.5], 0.1, 0), "group_size is 0"),
        (lambda: screen([0.5, math.nan], 0.1, 1), "score 1 is nan"),
        (lambda: screen([-math.inf], None, 1), "score 0 is -inf"),
        (lambda: top_up(screen([0.1], 0.5, 2), [0.1, 0.2], 2), "2 scores, but the screen saw 1"),
    ],
)
def test_invalid_input_is_refused_with_its_value(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("scores", "size", "indices", "topped_up"),
    [
        pytest.param([0.5, 0.9, 0.1, 0.4, 0.8, 0.2], 4, (1, 2, 4, 5), (), id="two of each"),
        pytest.param([0.5, 0.9, 0.1, 0.4, 0.8, 0.2], 3, (1, 2, 4), (), id="of three, two are the best"),
        pytest.param([0.5, 0.5, 0.5, 0.5, 0.5], 3, (0, 1, 4), (), id="ties are ranked in draw order"),
        pytest.param([None, 0.1, None, 0.3, None], 3, (0, 1, 3), (0,), id="without a score last, in draw order"),
        pytest.param([None, 0.1, 0.2], 3, (0, 1, 2), (0,), id="as many as there are"),
        pytest.param([0.3, 0.1], 3, (0, 1), (), id="fewer than the group"),
    ],
)
def test_best_and_worst_by_hand(
    scores: list[float | None], size: int, indices: tuple[int, ...], topped_up: tuple[int, ...]
) -> None:
    found = best_and_worst(scores, size)
    assert (found.indices, found.topped_up) == (indices, topped_up)
    assert found.num_scored == sum(score is not None for score in scores)
    assert (found.drawn, found.is_full) == (len(scores), len(scores) >= size)


@given(SCORES, GROUPS)
def test_no_rejected_score_is_outside_of_both_tails(scores: list[float | None], group_size: int) -> None:
    """Negating all scores swaps the tails, up to ties."""
    found = best_and_worst(scores, group_size)
    kept = sorted(score for i in found.indices if (score := scores[i]) is not None)
    rejected = [score for i, score in enumerate(scores) if i not in found.indices and score is not None]
    low, high = kept[: group_size // 2], kept[group_size // 2 :]
    assert all(score >= max(low, default=-2.0) and score <= min(high, default=2.0) for score in rejected)
    if group_size % 2 == 0 and len(set(scores)) == len(scores):
        negated = best_and_worst([None if score is None else -score for score in scores], group_size)
        assert negated.indices == found.indices


@pytest.mark.parametrize(
    ("advantages", "count", "expected"),
    [
        ([0.1, -0.5, 0.3, 0.0], 2, (1, 2)),
        ([0.5, -0.5, 0.5, -0.5], 2, (0, 1)),  # ties: the first
        ([0.0, 0.0], 1, (0,)),
        ([0.2, -0.1], 3, (0, 1)),
        ([], 3, ()),
    ],
)
def test_extremes_by_hand(advantages: list[float], count: int, expected: tuple[int, ...]) -> None:
    assert extremes(advantages, count) == expected


def test_a_count_of_no_extremes_is_refused() -> None:
    with pytest.raises(ValueError, match="the number of extremes is 0; give 1 or more"):
        extremes([0.5], 0)
