"""One step of each controller by hand, and its properties for any scores."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.algorithms.threshold import KeepAll, Paper, Power, Quantile, ThresholdController, ThresholdState

FIVE = [0.1, 0.2, 0.3, 0.4, 0.5]  # its .75 quantile is .4
PAPER = Paper(0.5)


def advance(
    controller: ThresholdController, state: ThresholdState, scores: list[float], passed: int = 0, capped: bool = False
) -> ThresholdState:
    return controller.update(state, scores, len(scores), passed, capped)


def test_quantile_sets_t_at_once_then_averages_then_tracks() -> None:
    controller = Quantile()
    assert controller.initial_state() == ThresholdState(None, 0.0, 0)
    assert advance(controller, controller.initial_state(), FIVE) == ThresholdState(0.4, 0.0, 1)
    assert advance(Quantile(start=0.9), ThresholdState(0.9), FIVE) == ThresholdState(
        pytest.approx(0.4), pytest.approx(-0.1), 1
    )
    for iteration, gain in [(1, 1 / 2), (2, 1 / 3), (3, 1 / 4), (4, 1 / 5), (5, 0.2), (50, 0.2)]:
        after = advance(controller, ThresholdState(0.2, 0.0, iteration), FIVE)
        assert after == ThresholdState(pytest.approx(0.2 + gain * 0.2), pytest.approx(0.2 * gain * 0.2), iteration + 1)


def test_quantile_halves_its_gain_on_trend_conflict_once_warm() -> None:
    controller = Quantile()
    assert advance(controller, ThresholdState(0.2, -0.01, 9), FIVE).threshold == pytest.approx(0.2 + 0.1 * 0.2)
    assert advance(controller, ThresholdState(0.2, 0.01, 9), FIVE).threshold == pytest.approx(0.2 + 0.2 * 0.2)
    assert advance(controller, ThresholdState(0.6, 0.01, 9), FIVE).threshold == pytest.approx(0.6 - 0.1 * 0.2)
    assert advance(controller, ThresholdState(0.2, -0.01, 3), FIVE).threshold == pytest.approx(0.2 + 0.25 * 0.2)
    assert advance(controller, ThresholdState(0.2, -0.01, 4), FIVE).threshold == pytest.approx(0.2 + 0.2 * 0.2)
    assert advance(controller, ThresholdState(0.2, -0.01, 5), FIVE).threshold == pytest.approx(0.2 + 0.1 * 0.2)
    assert advance(Quantile(eps0=4), ThresholdState(0.2, -0.01, 9), FIVE).threshold == pytest.approx(0.2 + 0.05 * 0.2)
    assert advance(controller, ThresholdState(0.2, -0.01, 9), FIVE).trend == pytest.approx(0.8 * -0.01 + 0.2 * 0.02)


def test_quantile_interpolates_at_its_own_target() -> None:
    assert advance(Quantile(target_pass_rate=0.5), ThresholdState(), [3.0, 1.0]).threshold == pytest.approx(2.0)
    assert advance(Quantile(target_pass_rate=0.1), ThresholdState(), FIVE).threshold == pytest.approx(0.46)


def test_power_by_hand() -> None:
    scores = [0.5] * 36
    after = advance(Power(0.5), ThresholdState(0.5, 0.0, 7), scores, passed=9)
    assert after == ThresholdState(pytest.approx(0.5 ** (1 - 0.12 * (8 / 35 - 0.25))), 0.0, 8)
    capped = advance(Power(0.5), ThresholdState(0.5), scores, passed=3, capped=True)
    assert capped.threshold == pytest.approx(0.5 ** (1 - 0.12 * (3 / 36 - 0.25)))
    none = advance(Power(0.5), ThresholdState(0.5), scores, passed=0, capped=True)
    assert none.threshold == pytest.approx(0.5 ** (1 + 0.12 * 0.25))


def test_eq_7_by_hand_with_and_without_the_indicator() -> None:
    scores = [0.5] * 20  # 9 pass: Delta = .45 - .25 = .2
    plain = 0.5 ** (1 + 0.12 * 0.2)
    assert advance(PAPER, ThresholdState(0.5), scores, 9) == ThresholdState(
        pytest.approx(plain), pytest.approx(0.2 * (plain - 0.5)), 1
    )
    conflict = 0.5 ** (1 + (0.12 - 2) * 0.2)
    after = advance(PAPER, ThresholdState(0.5, -0.01, 4), scores, 9)
    assert after == ThresholdState(pytest.approx(conflict), pytest.approx(0.8 * -0.01 + 0.2 * (conflict - 0.5)), 5)
    assert advance(PAPER, ThresholdState(0.5, 0.01, 4), scores, 9).threshold == pytest.approx(plain)
    falling = 0.5 ** (1 + (0.12 - 2) * (0.05 - 0.25))
    assert advance(PAPER, ThresholdState(0.5, 0.01), scores, 1).threshold == pytest.approx(falling)


@pytest.mark.parametrize(
    ("controller", "low", "high"), [(Power(0.5, mu=50.0), 1e-3, 1 - 1e-3), (Paper(0.5, mu=500.0), 1e-6, 0.999999)]
)
def test_powers_are_clamped(controller: ThresholdController, low: float, high: float) -> None:
    ends = {advance(controller, ThresholdState(0.5), [0.5] * 40, passed=p, capped=True).threshold for p in (0, 40)}
    assert ends == {low, high}


def test_keep_all() -> None:
    assert advance(KeepAll(), KeepAll().initial_state(), FIVE) == ThresholdState(None, 0.0, 1)
    assert KeepAll().update(ThresholdState(), [], 9, 9, False).threshold is None


@pytest.mark.parametrize("controller", [Quantile(), Quantile(start=0.3), Power(0.3), PAPER])
def test_an_iteration_without_scores_changes_nothing(controller: ThresholdController) -> None:
    state = ThresholdState(0.3, 0.02, 6)
    assert controller.update(state, [], 144, 0, True) == state
    assert controller.update(controller.initial_state(), [], 144, 0, True) == controller.initial_state()


@pytest.mark.parametrize("controller", [Power(0.5), PAPER, Quantile()])
def test_missing_scores_do_not_change_the_pass_rate(controller: ThresholdController) -> None:
    state = ThresholdState(0.5, 0.0, 9)
    assert controller.update(state, FIVE, 5, 2, False) == controller.update(state, FIVE, 50, 2, False)


SCORES = st.lists(st.floats(-5, 5), min_size=1, max_size=40)
TRACKERS = st.builds(
    ThresholdState, st.floats(-5, 5) | st.none(), st.floats(-1, 1).filter(lambda t: abs(t) > 1e-6), st.integers(0, 200)
)


@given(TRACKERS)
def test_a_state_survives_json(state: ThresholdState) -> None:
    assert ThresholdState(**json.loads(json.dumps(asdict(state)))) == state


@given(SCORES, TRACKERS, st.floats(0.1, 100), st.floats(-50, 50))
def test_quantile_is_equivariant_under_a_change_of_scale(
    scores: list[float], state: ThresholdState, scale: float, offset: float
) -> None:
    controller = Quantile()
    before = state.threshold
    if before is not None and abs(float(np.quantile(scores, 0.75)) - before) < 1e-6:
        return  # at no error, rounding picks the branch
    moved = ThresholdState(None if before is None else scale * before + offset, scale * state.trend, state.iteration)
    plain = advance(controller, state, scores)
    scaled = advance(controller, moved, [scale * score + offset for score in scores])
    assert plain.threshold is not None
    assert scaled.threshold == pytest.approx(scale * plain.threshold + offset, abs=1e-6 * scale)
    assert scaled.trend == pytest.approx(scale * plain.trend, abs=1e-6 * scale)


@given(SCORES, TRACKERS, st.randoms(use_true_random=False))
def test_quantile_stays_between_t_and_the_quantile_in_any_order(
    scores: list[float], state: ThresholdState, rng: Any
) -> None:
    quantile = float(np.quantile(scores, 0.75))
    after = advance(Quantile(), state, scores)
    assert after.threshold is not None
    before = quantile if state.threshold is None else state.threshold
    assert min(before, quantile) - 1e-9 <= after.threshold <= max(before, quantile) + 1e-9
    shuffled = list(scores)
    rng.shuffle(shuffled)
    assert advance(Quantile(), state, shuffled) == after


@given(st.integers(1, 60), st.data())
def test_powers_stay_in_the_open_unit_interval(count: int, data: st.DataObject) -> None:
    passed = data.draw(st.integers(0, count))
    for controller in (Power(0.5), PAPER):
        state = ThresholdState(data.draw(st.floats(1e-6, 1 - 1e-6)), data.draw(st.floats(-1, 1)), 3)
        after = advance(controller, state, [0.5] * count, passed, data.draw(st.booleans()))
        assert after.threshold is not None
        assert 0 < after.threshold < 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: advance(Quantile(), ThresholdState(), [0.1, math.nan]), "score 1 is nan"),
        (lambda: advance(Quantile(), ThresholdState(), [math.inf]), "score 0 is inf"),
        (lambda: Quantile().update(ThresholdState(), FIVE, 4, 0, False), "5 scores of 4 previews"),
        (lambda: advance(PAPER, ThresholdState(0.5), FIVE, passed=6), "6 passed of 5 scores"),
        (lambda: advance(PAPER, ThresholdState(None), FIVE), "threshold is None"),
        (lambda: advance(Power(0.5), ThresholdState(1.5), FIVE), "threshold is 1.5"),
    ],
)
def test_invalid_input_is_refused_with_its_value(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
