"""Several rewards in one: by hand, against trl's formulas in numpy and recorded numbers, masks and invariances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trainer.algorithms.advantage import Normalise, advantages, step_advantages
from trainer.algorithms.aggregate import GroupRewards, Moments, check_weights, is_flat
from trainer.types import Aggregation, Reward, RewardSpec

NAN = math.nan
FORMS: list[tuple[Aggregation, Normalise]] = [
    ("sum", "none"),
    ("sum", "group_std"),
    ("sum", "batch_std"),
    ("gdpo", "none"),
]
EVERY_FORM = pytest.mark.parametrize(("aggregation", "normalise"), FORMS)


def group(values: Any, weights: Sequence[float] = (1.0,), valid: Sequence[int] | None = None) -> GroupRewards:
    value_GK = torch.as_tensor(np.asarray(values, dtype=np.float64).reshape(-1, len(weights)))
    mask = [1] * len(value_GK) if valid is None else valid
    return GroupRewards(value_GK, torch.tensor(mask, dtype=torch.bool), tuple(weights))


def trl(value_BGK: np.ndarray, weights: np.ndarray, aggregation: str, normalise: str) -> np.ndarray:
    """Return trl 1.10's advantages [B G]; NaN marks a rollout without any score. Axes: B groups, G, K."""

    def std(x: np.ndarray, axis: int | None) -> np.ndarray:
        return np.asarray(np.nanstd(x, axis=axis, ddof=1, keepdims=axis is not None))

    if aggregation == "gdpo":
        centred = value_BGK - np.nanmean(value_BGK, axis=1, keepdims=True)
        reward_BG = (centred / (std(value_BGK, 1) + 1e-4)) @ weights
        advantage_BG = (reward_BG - np.nanmean(reward_BG)) / (std(reward_BG, None) + 1e-4)
    else:
        reward_BG = value_BGK @ weights
        advantage_BG = reward_BG - np.nanmean(reward_BG, axis=1, keepdims=True)
        if normalise != "none":
            advantage_BG = advantage_BG / (std(reward_BG, 1 if normalise == "group_std" else None) + 1e-4)
    return np.asarray(np.nan_to_num(advantage_BG))


# trl's own lines (huggingface/trl at f2cd577) on these rewards, weights .75 and .25, in float64
RECORDED = np.array([[[1, 20], [0, 21.5], [3, 19], [2, 20]], [[0.5, 7], [0.25, 7], [0.5, 9], [1, 8]]])


@pytest.mark.parametrize(
    ("aggregation", "normalise", "expected"),
    [
        ("gdpo", "none", [-0.4834247, -0.8106674, 0.9020398, 0.3920523, -0.5196164, -1.4176209, 0.2673576, 1.6698796]),
        (
            "sum",
            "group_std",
            [-0.5552566, -1.0678011, 1.1532252, 0.4698325, -0.600969, -1.0817442, 0.6810982, 1.001615],
        ),
        (
            "sum",
            "batch_std",
            [-0.1933679, -0.3718613, 0.4016102, 0.163619, -0.1115584, -0.2008051, 0.1264328, 0.1859307],
        ),
    ],
)
def test_trl_recorded_advantages(aggregation: Aggregation, normalise: Normalise, expected: list[float]) -> None:
    groups = [group(values, (0.75, 0.25)) for values in RECORDED]
    found = step_advantages(groups, aggregation=aggregation, normalise=normalise, epsilon=1e-4)
    assert torch.cat(found).tolist() == pytest.approx(expected, abs=1e-6)
    second = trl(RECORDED, np.array([0.75, 0.25]), aggregation, normalise)
    assert second.ravel().tolist() == pytest.approx(expected, abs=1e-6)


@EVERY_FORM
@given(st.integers(1, 4), st.integers(3, 9), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_advantages_equal_trl_with_its_epsilon(
    aggregation: Aggregation, normalise: Normalise, groups: int, rollouts: int, scorers: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    level, scale = rng.choice([0.0, 0.3, 20.0], scorers), rng.choice([0.0, 0.01, 1.0, 20.0], scorers)
    value_BGK = level + scale * rng.standard_normal((groups, rollouts, scorers))
    weights = rng.standard_normal(scorers)
    missing_BG = rng.random((groups, rollouts)) < 0.2
    missing_BG[:, :2] = False
    value_BGK[missing_BG] = NAN
    ours = step_advantages(
        [group(value, weights.tolist(), ~missing) for value, missing in zip(value_BGK, missing_BG, strict=True)],
        aggregation=aggregation,
        normalise=normalise,
        epsilon=1e-4,
    )
    expected = trl(value_BGK, weights, aggregation, normalise)
    assert torch.stack(ours).numpy() == pytest.approx(expected, abs=1e-5)


def test_normalised_advantages_by_hand() -> None:
    one, two = group([1, 2, 3]), group([10, 10, 16])  # standard deviations 1 and sqrt(12)
    by_group = step_advantages([one, two], normalise="group_std")
    assert by_group[0].tolist() == [-1, 0, 1]
    assert by_group[1].tolist() == pytest.approx([-1 / math.sqrt(3), -1 / math.sqrt(3), 2 / math.sqrt(3)])
    by_step = step_advantages([group([0, 2]), group([4, 6])], normalise="batch_std")  # variance 20/3, not 4/3
    assert torch.cat(by_step).tolist() == pytest.approx([-1 / math.sqrt(20 / 3), 1 / math.sqrt(20 / 3)] * 2)
    shifted = step_advantages([one], normalise="group_std", shifts=[-0.5])
    assert shifted[0].tolist() == [-0.5, 0.5, 1.5]


@pytest.mark.parametrize("gap", [1e-6, 0.35, 1000.0])
def test_two_rewards_are_normalised_to_a_constant(gap: float) -> None:
    """Whatever their difference, which is why settings refuse it: also one that is only a scorer's noise."""
    (found,) = step_advantages([group([0.0, gap])], normalise="group_std")
    assert found.tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])


def test_advantages_are_clamped() -> None:
    one = group([0.0] * 31 + [1.0])
    (free,), (clamped,) = (step_advantages([one], normalise="group_std", clamp=clamp) for clamp in (None, 5.0))
    assert float(free.max()) == pytest.approx(31 / math.sqrt(32))
    assert clamped.tolist() == pytest.approx(free.clamp(-5, 5).tolist())
    assert float(clamped.max()) == 5.0
    (negative,) = step_advantages([group([0.0, 8.0])], clamp=1.5)
    assert negative.tolist() == [-1.5, 1.5]


def test_small_spreads_count_and_rounding_does_not() -> None:
    """A JPEG reward's spread of 4e-4 counts in full, where 1e-4 damps it; residue of equal rewards gives exactly 0."""
    jpeg, residue = [-0.004, -0.0036, -0.0044, -0.004], [0.1 + 0.2, 0.3, 0.3, 0.3]
    (full,), (damped,) = (step_advantages([group(jpeg)], normalise=form) for form in ("group_std", "group_std_paper"))
    assert float(full.std()) == pytest.approx(1.0)
    assert (damped / full)[1:3].tolist() == pytest.approx([3.266e-4 / (3.266e-4 + 1e-4)] * 2, rel=1e-3)
    (none,) = step_advantages([group(residue)], normalise="group_std")
    assert none.tolist() == [0.0] * 4
    (lone,) = step_advantages([group([0.35] + [0.0] * 7)], normalise="group_std")
    assert lone.tolist() == pytest.approx([7 / math.sqrt(8)] + [-1 / math.sqrt(8)] * 7)


def test_gdpo_by_hand() -> None:
    groups = [group([[1, 10], [2, 30], [3, 20]], (1, 2)), group([[0, 5], [0, 5], [0, 5]], (1, 2))]
    # normalised scores (-1, 0, 1) and (-1, 1, 0): sums -3, 2, 1, then three zeros; their variance is 14/5
    found = step_advantages(groups, aggregation="gdpo")
    assert found[0].tolist() == pytest.approx([v / math.sqrt(14 / 5) for v in (-3, 2, 1)])
    assert found[1].tolist() == [0, 0, 0]


def test_a_large_reward_drowns_others_in_the_sum_only() -> None:
    one = group([[0.0, 0.0], [1.0, 0.0], [0.0, 1000.0], [1.0, 1000.0]], (1, 1))
    summed, gdpo = (step_advantages([one], aggregation=form)[0] for form in ("sum", "gdpo"))
    assert float(summed[1] / summed[2]) == pytest.approx(-499.5 / 499.5, rel=0.01)
    assert gdpo[1:3].tolist() == pytest.approx([0, 0], abs=1e-12)


def test_negative_values_and_weights_are_not_clipped() -> None:
    assert step_advantages([group([[-3, 1], [1, -1]], (1, -1))])[0].tolist() == [-3, 3]


def test_gdpo_reads_the_scorers_that_have_a_weight() -> None:
    spec = RewardSpec({"b": 0.5, "c": 0, "a": 2}, aggregation="gdpo")
    rewards = [
        Reward(3.0, {"a": 1.0, "b": 2.0}),
        Reward(None, {"a": 1.0, "b": 2.0}),  # its weighted sum overflowed
        Reward(3.0, {"a": 1.0}),
        Reward(8.0, {"b": 4.0, "a": 3.0, "c": 9.0}),
    ]
    found = GroupRewards.of(rewards, spec)
    assert found.valid_G.tolist() == [True, False, False, True]
    assert found.complete.tolist() == [[2, 1], [4, 3]]
    assert found.weight_K == (0.5, 2)
    assert GroupRewards.of([], spec).value_GK.shape == (0, 2)


@pytest.mark.parametrize("spec", [RewardSpec({"a": 2.0}), RewardSpec(ensemble="all"), RewardSpec({"a": 2.0, "b": 1})])
def test_a_sum_is_the_reward_itself(spec: RewardSpec) -> None:
    found = GroupRewards.of([Reward(0.5, {"a": 9.0}), Reward(None, {"a": 9.0, "b": 1.0}), Reward(1.5)], spec)
    assert found.valid_G.tolist() == [True, False, True]
    assert found.complete.tolist() == [[0.5], [1.5]]
    assert found.weight_K == (1,)
    assert step_advantages([found])[0].tolist() == [-0.5, 0, 0.5]


GROUP = st.tuples(
    arrays(np.float64, (6, 2), elements=st.floats(-2, 2, width=32)), st.lists(st.booleans(), min_size=6, max_size=6)
)
JUNK = st.sampled_from([NAN, math.inf, -math.inf, 0.0, 1e30])


@EVERY_FORM
@given(st.lists(GROUP, min_size=1, max_size=3), JUNK)
def test_masked_scores_change_nothing(
    aggregation: Aggregation, normalise: Normalise, cases: list[tuple[np.ndarray, list[bool]]], junk: float
) -> None:
    form: dict[str, Any] = {"aggregation": aggregation, "normalise": normalise}
    full, without = [], []
    for values, valid in cases:
        full.append(group(np.where(np.array(valid)[:, None], values, junk), (0.5, 2), valid))
        without.append(group(values[valid], (0.5, 2)))
    for found, expected, one in zip(step_advantages(full, **form), step_advantages(without, **form), full, strict=True):
        assert torch.equal(found[one.valid_G], expected)
        assert found[~one.valid_G].tolist() == [0.0] * int((~one.valid_G).sum())


@EVERY_FORM
@given(st.integers(0, 2**32 - 1), st.permutations(range(5)), st.permutations(range(3)))
def test_order_of_rollouts_and_groups_does_not_matter(
    aggregation: Aggregation, normalise: Normalise, seed: int, rollouts: list[int], order: list[int]
) -> None:
    form: dict[str, Any] = {"aggregation": aggregation, "normalise": normalise}
    values = np.random.default_rng(seed).standard_normal((3, 5, 2))
    base = step_advantages([group(v, (1, -0.5)) for v in values], **form)
    found = step_advantages([group(v[rollouts], (1, -0.5)) for v in values[order]], **form)
    assert torch.allclose(torch.stack(found), torch.stack(base)[order][:, rollouts], atol=1e-12)


@pytest.mark.parametrize(("aggregation", "normalise"), FORMS[1:])
@given(st.integers(0, 2**32 - 1), st.floats(-5, 5), st.sampled_from([1e-6, 0.1, 7.0, 1e6]))
def test_normalised_advantages_keep_under_shift_and_scale(
    aggregation: Aggregation, normalise: Normalise, seed: int, shift: float, scale: float
) -> None:
    form: dict[str, Any] = {"aggregation": aggregation, "normalise": normalise}
    values = np.random.default_rng(seed).standard_normal((2, 6, 2))
    base = step_advantages([group(v, (1, 2)) for v in values], **form)
    moved = step_advantages([group(scale * (v + shift), (1, 2)) for v in values], **form)
    assert torch.allclose(torch.stack(moved), torch.stack(base), atol=1e-8)


@given(st.integers(0, 2**32 - 1), st.floats(-5, 5), st.floats(0.01, 100))
def test_gdpo_is_invariant_to_the_scale_of_each_scorer(seed: int, shift: float, scale: float) -> None:
    values = np.random.default_rng(seed).standard_normal((2, 6, 2))
    moved = values * [scale, 1] + [shift, 0]
    base, found = (step_advantages([group(v, (1, 2)) for v in x], aggregation="gdpo") for x in (values, moved))
    assert torch.allclose(torch.stack(found), torch.stack(base), atol=1e-8)
    assert float(torch.stack(base).mean()) == pytest.approx(0, abs=1e-12)
    assert float(torch.stack(base).std()) == pytest.approx(1)


@pytest.mark.parametrize("aggregation", ["sum", "gdpo"])
@pytest.mark.parametrize("value", [0.0, 0.1, -20.3, 1e-30, 1e30])
@pytest.mark.parametrize("normalise", ["group_std", "batch_std"])
def test_a_group_without_spread_gets_exactly_0(aggregation: Aggregation, value: float, normalise: Normalise) -> None:
    normalise = "none" if aggregation == "gdpo" else normalise
    flat = group([value * (1 + 1e-7 * (i % 3)) for i in range(9)])
    assert is_flat(flat, aggregation)
    other = group([1.0, 2.0, 3.0])
    assert not is_flat(other, aggregation)
    for groups in ([flat], [flat, other], [flat, flat]):
        found = step_advantages(groups, aggregation=aggregation, normalise=normalise)
        assert found[0].tolist() == [0.0] * 9


def test_cancelling_rewards_are_flat() -> None:
    values = np.random.default_rng(0).standard_normal(9)
    opposed = group(np.stack([values, 1 - values], 1), (0.3, 0.3))
    assert is_flat(opposed, "sum")
    assert is_flat(opposed, "gdpo")
    assert step_advantages([opposed], aggregation="gdpo")[0].tolist() == [0.0] * 9


def test_a_small_spread_is_not_flat() -> None:
    assert not is_flat(group([20.0, 20.001]), "sum")
    assert not is_flat(group([1e-9, 2e-9]), "sum")
    assert not is_flat(group([0.0, 0.0, 1e-9]), "gdpo")


def test_a_group_with_one_reward_is_not_flat_and_gets_0() -> None:
    one = group([5.0, NAN], valid=[1, 0])
    none = group([NAN, NAN], valid=[0, 0])
    for aggregation, normalise in FORMS:
        assert not is_flat(one, aggregation)
        assert not is_flat(none, aggregation)
        found = step_advantages([one, none], aggregation=aggregation, normalise=normalise)
        assert torch.cat(found).tolist() == [0.0] * 4
    assert step_advantages([]) == []


@given(arrays(np.float32, (7,), elements=st.floats(-3, 3, width=32)), st.floats(-1, 1))
def test_the_default_is_dr_grpo_bit_for_bit(values: np.ndarray, shift: float) -> None:
    one = GroupRewards(torch.from_numpy(values[:, None].copy()), torch.ones(7, dtype=torch.bool), (1.0,))
    found = step_advantages([one], shifts=[shift])[0]
    assert found.dtype == torch.float32
    assert torch.equal(found, advantages(torch.from_numpy(values), one.valid_G, baseline_shift=shift))


@given(arrays(np.float64, (5, 3), elements=st.floats(-10, 10)))
def test_moments_equal_numpys(terms: np.ndarray) -> None:
    values = terms.sum(1)
    assume(values.std() > 1e-4)
    found = Moments.of(torch.from_numpy(terms[:2])) + Moments.of(torch.from_numpy(terms[2:]))
    assert found.count == 5
    assert found.std == pytest.approx(values.std(ddof=1), rel=1e-6)
    assert found.magnitude == pytest.approx((terms**2).sum())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: group([1.0, NAN]), "not finite.*nan"),
        (lambda: group([[1.0, 2.0]], (0.0, 0.0)), r"weights are \[0.0, 0.0\]"),
        (lambda: group([[1.0, 2.0]], (1.0, NAN)), r"weights are \[1.0, nan\]"),
        (lambda: check_weights([math.inf]), r"weights are \[inf\]"),
        (lambda: check_weights([]), r"weights are \[\]"),
        (lambda: group([1.0, 2.0], valid=[1]), r"float64 \[2, 1\]; give floats \[1, 1\]"),
        (lambda: GroupRewards(torch.ones(1, 1, dtype=torch.int64), torch.tensor([True]), (1.0,)), "int64"),
        (lambda: GroupRewards(torch.ones(1, 1), torch.ones(1), (1.0,)), r"valid_G is torch.float32 \[1\]"),
        (lambda: step_advantages([group([1.0])], aggregation="gdpo", normalise="group_std"), "gdpo with normalise"),
        (lambda: step_advantages([group([1.0])], aggregation="gdpo", shifts=[0.5]), r"shifts \[0.5\]"),
        (lambda: step_advantages([group([1.0])], shifts=[NAN]), "shift is nan"),
        (lambda: step_advantages([group([1.0])], shifts=[]), "shorter|longer"),
    ],
)
def test_invalid_rewards_are_refused_with_their_value(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
