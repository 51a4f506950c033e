"""Advantages by hand, masks, and the slope against numpy's."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.algorithms.advantage import EVIDENCE, MEMORY, Slope, advantages, population_baseline

NAN = math.nan


def mask(*valid: int) -> torch.Tensor:
    return torch.tensor(valid, dtype=torch.bool)


def test_advantages_by_hand() -> None:
    reward = torch.tensor([1.0, 2.0, 6.0])
    assert advantages(reward, mask(1, 1, 1)).tolist() == [-2.0, -1.0, 3.0]
    assert advantages(torch.tensor([1.0, NAN, 4.0]), mask(1, 0, 1)).tolist() == [-1.5, 0.0, 1.5]
    assert advantages(reward, mask(1, 1, 1), baseline_shift=-1.5).tolist() == [-0.5, 0.5, 4.5]
    assert advantages(torch.tensor([NAN, 7.0]), mask(0, 1)).tolist() == [0.0, 0.0]
    assert advantages(torch.tensor([NAN, NAN]), mask(0, 0), baseline_shift=3.0).tolist() == [0.0, 0.0]
    assert reward.tolist() == [1.0, 2.0, 6.0]


REWARDS = st.lists(st.tuples(st.floats(-2, 2, width=32), st.booleans()), min_size=1, max_size=12)
JUNK = st.sampled_from([NAN, math.inf, -math.inf, 0.0, 1e30])


@given(REWARDS, JUNK, st.sampled_from([torch.float32, torch.float64]), st.floats(-1, 1))
def test_a_missing_reward_does_not_change_other_advantages(
    rewards: list[tuple[float, bool]], junk: float, dtype: torch.dtype, shift: float
) -> None:
    valid = mask(*(v for _, v in rewards))
    full = torch.tensor([r if v else junk for r, v in rewards], dtype=dtype)
    found = advantages(full, valid, baseline_shift=shift)
    without = torch.tensor([r for r, v in rewards if v], dtype=dtype)
    assert found.dtype == dtype
    assert torch.equal(
        found[valid], advantages(without, torch.ones(len(without), dtype=torch.bool), baseline_shift=shift)
    )
    assert found[~valid].tolist() == [0.0] * int((~valid).sum())
    if valid.any():
        naive = [r - sum(without.tolist()) / len(without) - shift for r in without.tolist()]
        assert found[valid].tolist() == pytest.approx(naive, abs=2e-6)
        assert float(found.sum()) == pytest.approx(-shift * len(without), abs=2e-5)


@given(REWARDS, st.floats(-5, 5))
def test_advantages_are_invariant_to_a_constant(rewards: list[tuple[float, bool]], constant: float) -> None:
    valid = mask(*(v for _, v in rewards))
    reward = torch.tensor([r for r, _ in rewards], dtype=torch.float64)
    assert torch.allclose(advantages(reward, valid), advantages(reward + constant, valid), atol=1e-12)


def full_slope(groups: int = 3) -> tuple[Slope, list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    slope, xs, ys = Slope(), [], []
    for _ in range(groups):
        x = rng.standard_normal(9) + 10 * rng.standard_normal()  # prompts differ in level, which is not a correlation
        y = 0.7 * x + 0.1 * rng.standard_normal(9) - 20 * x.mean()
        slope = slope.update(x.tolist(), y.tolist())
        xs.append(x)
        ys.append(y)
    return slope, xs, ys


def test_slope_is_weighted_least_squares_within_groups() -> None:
    slope, xs, ys = full_slope()
    weight = np.repeat([MEMORY**2, MEMORY, 1.0], 9)
    x = np.concatenate([v - v.mean() for v in xs])
    y = np.concatenate([v - v.mean() for v in ys])
    design = np.sqrt(weight)
    expected = np.linalg.lstsq((design * x)[:, None], design * y)[0][0]
    assert slope.value == pytest.approx(expected, rel=1e-12)
    assert slope.value == pytest.approx(0.7, abs=0.05)
    assert slope.freedom == pytest.approx(8 * (MEMORY**2 + MEMORY + 1))
    assert Slope(**json.loads(json.dumps(asdict(slope)))) == slope


def test_slope_needs_evidence_and_complete_pairs() -> None:
    two = full_slope(2)[0]
    assert two.xx > 0
    assert two.freedom < EVIDENCE
    assert two.value == 0.0
    assert full_slope(3)[0].value != 0.0
    lost = Slope().update([0.0, 1.0, None, 5.0], [0.0, 2.0, 9.0, None])
    assert lost == Slope().update([0.0, 1.0], [0.0, 2.0]) == Slope(1.0, 0.5, 1.0)
    assert lost.update([1.0, None], [1.0, 1.0]) is lost
    assert Slope(0.0, 0.0, 99.0).value == 0.0


def test_the_population_baseline_by_hand() -> None:
    slope = Slope(1.0, 2.0, EVIDENCE)
    assert population_baseline(slope, [3.0, None, 5.0], [3.0, 0.0, 5.0, 0.0, None]) == -0.5 * (4.0 - 2.0)
    assert population_baseline(slope, [None], [1.0]) == 0.0
    assert population_baseline(slope, [], []) == 0.0
    assert population_baseline(Slope(), [3.0], [1.0, 3.0]) == 0.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: advantages(torch.tensor([1.0, NAN]), mask(1, 1)), "nan"),
        (lambda: advantages(torch.tensor([1.0]), mask(1, 1)), r"\[1\], valid_G \[2\]"),
        (lambda: advantages(torch.tensor([1]), mask(1)), "int64"),
        (lambda: advantages(torch.tensor([1.0]), torch.tensor([1.0])), "valid_G is torch.float32"),
        (lambda: advantages(torch.tensor([1.0]), mask(1), baseline_shift=NAN), "shift is nan"),
        (lambda: advantages(torch.ones(1, 1), mask(1)[None]), r"valid_G is torch.bool \[1, 1\]"),
        (lambda: Slope().update([1.0], [1.0, 2.0]), "1 scores and 2 rewards"),
        (lambda: Slope().update([1.0, NAN], [1.0, 2.0]), "not finite"),
    ],
)
def test_invalid_input_is_refused_with_its_value(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
