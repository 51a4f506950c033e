"""Reward health against numpy, however the outcomes are split over requests and processes."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.observability.reward_health import BASELINE, Sums, groups_of, health_of, sums_of
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem

LOW, HIGH = -1.0, 3.0
FAILED = ScoreFailure("scorer_failed", "")
VALUES = st.floats(LOW, HIGH, allow_nan=False)
OUTCOMES = st.lists(st.one_of(VALUES.map(Score), st.just(FAILED)), min_size=1, max_size=60)


def added(*parts: Sums) -> Sums:
    """Add sums as counters of several processes add up."""
    return Sums(*map(sum, zip(*map(astuple, parts), strict=True)))


def values(outcomes: list[Outcome]) -> np.ndarray:  # type: ignore[type-arg]
    return np.array([o.value for o in outcomes if isinstance(o, Score)])


@settings(deadline=None)
@given(st.lists(OUTCOMES, min_size=1, max_size=6))
def test_moments_and_shares_equal_numpy(requests: list[list[Outcome]]) -> None:
    found = health_of(added(*(sums_of(one, [], LOW, HIGH) for one in requests)), LOW, HIGH)
    every = [outcome for one in requests for outcome in one]
    measured = values(every)
    assert found.error_share == pytest.approx((len(every) - len(measured)) / len(every))
    if len(measured) == 0:
        assert (found.mean, found.std, found.saturation) == (None, None, None)
        return
    assert found.mean == pytest.approx(measured.mean(), abs=1e-9)
    assert found.std == pytest.approx(measured.std(), abs=1e-6)
    unit = (measured - LOW) / (HIGH - LOW)
    assert found.saturation == pytest.approx(np.mean((unit <= 0.01) | (unit >= 0.99)))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["cat", "dog", "owl"]), st.sampled_from([0.0, 0.5, None])), max_size=20))
def test_zero_spread_is_the_share_of_flat_groups(rollouts: list[tuple[str, float | None]]) -> None:
    """Few distinct values, so that flat groups are common. Failures do not count; a group needs two scores."""
    outcomes: list[Outcome] = [FAILED if value is None else Score(value) for _, value in rollouts]
    items = [ScoreItem(prompt=prompt) for prompt, _ in rollouts]
    found = health_of(sums_of(outcomes, groups_of(items), LOW, HIGH), LOW, HIGH)
    groups = [
        np.array([v for p, v in rollouts if p == prompt and v is not None]) for prompt in {p for p, _ in rollouts}
    ]
    spread = [np.ptp(group) == 0 for group in groups if len(group) > 1]
    assert found.zero_spread == (pytest.approx(np.mean(spread)) if spread else None)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3000), st.integers(1, 400), st.floats(-0.2, 0.2))
def test_drift_is_in_baseline_standard_deviations(count: int, chunk: int, shift: float) -> None:
    rng = np.random.default_rng(count)
    stream = np.clip(rng.normal(0.5, 0.1, count) + shift * (np.arange(count) >= BASELINE), LOW, HIGH)
    sums = Sums()
    for start in range(0, count, chunk):
        outcomes = [Score(float(v)) for v in stream[start : start + chunk]]
        sums = added(sums, sums_of(outcomes, [], LOW, HIGH, seen=sums.scores))
    first, later = stream[:BASELINE], stream[BASELINE:]
    found = health_of(sums, LOW, HIGH).drift
    if len(later) == 0:
        assert found is None
    else:
        assert found == pytest.approx((later.mean() - first.mean()) / first.std(), abs=1e-6)


def test_constant_baseline_has_no_drift() -> None:
    sums = sums_of([Score(0.5)] * BASELINE, [], 0.0, 1.0)
    later = sums_of([Score(0.9)] * 5, [], 0.0, 1.0, seen=BASELINE)
    assert health_of(added(sums, later), 0.0, 1.0).drift is None


@given(OUTCOMES, st.sampled_from([(0.0, 0.5), (0.0, 0.0), (1.0, -1.0), (0.0, float("inf"))]))
def test_sums_are_never_negative(outcomes: list[Outcome], bounds: tuple[float, float]) -> None:
    sums = sums_of(outcomes, [range(len(outcomes))], *bounds)
    assert min(astuple(sums)) >= 0


def test_items_without_prompt_form_no_group() -> None:
    items = [ScoreItem(prompt=p) for p in ("a", None, "b", "a", None)]
    assert groups_of(items) == [[0, 3], [2]]
