"""The clipped loss by hand, its masks, statistics and weights; see also tests/numerics/test_clipped_loss.py."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.algorithms.losses import LossStats, clipped_loss, decision_weight

EVERY = {"clip": 0.2, "beta": 0.0, "weight": 1.0}


def logs(*rows: tuple[float, ...]) -> torch.Tensor:
    """Log-probabilities of the given probabilities, float64, with a gradient."""
    return torch.tensor(rows, dtype=torch.float64).log().requires_grad_()


def ones(rows: int, columns: int) -> torch.Tensor:
    return torch.ones(rows, columns, dtype=torch.bool)


JUNK = st.sampled_from([-math.inf, math.inf, math.nan, 0.0, -3.0])


@given(st.data(), st.integers(1, 4), st.integers(1, 5), JUNK, JUNK, JUNK)
def test_masked_decisions_add_exactly_zero(
    data: st.DataObject, rows: int, columns: int, new_junk: float, old_junk: float, ref_junk: float
) -> None:
    mask = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=columns, max_size=columns), min_size=rows, max_size=rows))
    )
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    clean = [-torch.rand(rows, columns, generator=generator) - 0.01 for _ in range(3)]
    advantage = torch.randn(rows, generator=generator)
    results = []
    for junk in ((new_junk, old_junk, ref_junk), (-1.0, -1.0, -1.0)):
        new, old, ref = (torch.where(mask, x, j) for x, j in zip(clean, junk, strict=True))
        new = new.requires_grad_()
        loss, stats = clipped_loss(new, old, ref, mask, advantage, clip=0.2, beta=0.1, weight=0.7)
        with torch.autograd.set_detect_anomaly(True):  # no step of the way back may hold a NaN, not only its end
            loss.backward()
        assert new.grad is not None
        assert torch.equal(new.grad[~mask], torch.zeros(int((~mask).sum())))
        results.append((loss, new.grad, stats))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]
    assert results[0][2].decisions == int(mask.sum())
    assert math.isfinite(results[0][0].item())


def test_an_unmasked_nan_is_not_hidden() -> None:
    new = torch.tensor([[math.nan, -1.0]])
    loss, _ = clipped_loss(new, torch.full((1, 2), -1.0), None, ones(1, 2), torch.tensor([1.0]), **EVERY)
    assert math.isnan(loss.item())


def test_large_log_ratios_are_clamped() -> None:
    new = torch.tensor([[-0.001, -500.0]], requires_grad=True)
    old, ref = torch.tensor([[-500.0, -0.001]]), torch.tensor([[-500.0, -0.001]])
    loss, stats = clipped_loss(new, old, ref, ones(1, 2), torch.tensor([-1.0]), clip=0.2, beta=1.0, weight=1.0)
    loss.backward()
    k3 = (math.exp(-10) + 9) + (math.exp(10) - 11)
    assert loss.item() == pytest.approx(math.exp(10) + 0.8 + k3, rel=1e-5)
    assert new.grad is not None
    assert new.grad.tolist() == [[0.0, 0.0]]
    assert (stats.high, stats.low) == (pytest.approx(math.exp(10)), pytest.approx(math.exp(-10)))


def test_half_precision_is_summed_in_float32() -> None:
    new = torch.full((2, 4096), -1.0, dtype=torch.bfloat16, requires_grad=True)
    loss, _ = clipped_loss(new, new.detach(), None, ones(2, 4096), torch.tensor([1.0, 0.0]), **EVERY)
    assert loss.dtype == torch.float32
    assert loss.item() == -2048.0


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_batches_and_steps_add_up_to_the_group(chunk: int) -> None:
    generator = torch.Generator().manual_seed(3)
    new, old, ref = (-torch.rand(5, 6, generator=generator, dtype=torch.float64) * 2 for _ in range(3))
    mask = torch.rand(5, 6, generator=generator) < 0.6
    advantage = torch.randn(5, generator=generator, dtype=torch.float64)
    kind: dict[str, Any] = {"clip": 0.2, "beta": 0.1, "weight": 0.3}
    whole, stats = clipped_loss(new, old, ref, mask, advantage, **kind)
    total, summed = torch.zeros(()), LossStats()
    for i in range(0, 5, chunk):
        rows = slice(i, i + chunk)
        part = (new[rows], old[rows], ref[rows], mask[rows], advantage[rows])
        loss, figures = clipped_loss(*part, **kind, group_size=5)
        total, summed = total + loss, summed + figures
    assert total.item() == pytest.approx(whole.item(), rel=1e-12)
    found, expected = ({**asdict(one), "steps": 0} for one in (summed, stats))
    assert found == pytest.approx(expected, rel=1e-12)


def test_statistics_without_decisions_are_none() -> None:
    loss, stats = clipped_loss(logs((0.5,)), logs((0.5,)), None, ~ones(1, 1), torch.tensor([1.0]), **EVERY)
    assert loss.item() == 0.0
    assert stats == LossStats()
    assert [stats.ratio_min, stats.ratio_max, stats.clip_fraction, stats.kl] == [None] * 4
    some = LossStats(2, 1, 0.5, 2.0, 0.1)
    assert stats + some == some == some + stats
    assert LossStats(**json.loads(json.dumps(asdict(some)))) + stats == some


def test_the_kl_of_steps_that_were_left_out_is_none() -> None:
    first, third = LossStats(2, kl_sum=0.5).at(0, 4), LossStats(4, kl_sum=3.0).at(2, 4)
    for both in (first + third, third + first, LossStats() + first + third):
        assert both.kl_by_step == [0.25, None, 0.75, None]
        assert (both.decisions, both.kl_sum) == (6, 3.5)
    assert (third + third).kl_by_step == [None, None, 0.75, None]
    assert LossStats(**json.loads(json.dumps(asdict(first)))) + third == first + third  # from another rank
    assert LossStats().kl_by_step == []


def test_weights_by_hand() -> None:
    assert decision_weight(0.4, "paper_sum", 100, 10) == 0.4
    assert decision_weight(0.4, "per_modality_constant", 100, 10) == pytest.approx(0.004)
    assert decision_weight(0.6, "per_modality_constant", 50 * 1024, 50) * 51_200 == pytest.approx(0.6)
    assert decision_weight(0.4, "own_length", 100, 10) == pytest.approx(0.04)


def test_own_length_is_the_mean_of_each_rollout() -> None:
    """Eq. 2 of UniRL-Zero; of three rollouts one has two decisions, one has one, and one has none."""
    new = logs((0.5, 0.25), (0.5, 0.5), (0.5, 0.5))
    old = torch.tensor([[0.5, 0.25], [0.5, 1.0], [1.0, 1.0]], dtype=torch.float64).log()
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    loss, _ = clipped_loss(new, old, None, mask, torch.tensor([3.0, -1.0, 9.0]), **EVERY, own_length=True)
    assert loss.item() == pytest.approx(-((3.0 + 3.0) / 2 - 1.0) / 3)
    (gradient,) = torch.autograd.grad(loss, new)
    assert gradient.flatten().tolist() == pytest.approx([-0.5, -0.5, 1 / 3, 0, 0, 0])


def test_a_sensitivity_divides_log_ratios_alone() -> None:
    new = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    kl = torch.tensor([[0.3]], dtype=torch.float64)
    arguments = new, torch.tensor([[-1.02]], dtype=torch.float64), None, ones(1, 1), torch.tensor([1.0])
    loss, stats = clipped_loss(*arguments, clip=0.2, beta=0.5, weight=1.0, kl_BD=kl, sensitivity=0.2)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(-math.exp(0.1) + 0.5 * 0.3)
    assert stats.high == pytest.approx(math.exp(0.1))
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(-math.exp(0.1) / 0.2)


def test_a_closed_form_kl_replaces_the_estimate() -> None:
    new = logs((0.5, 0.25), (0.5, 0.5))
    kl = torch.tensor([[0.3, 7.0], [0.1, 0.2]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    loss, stats = clipped_loss(new, new.detach(), None, mask, torch.zeros(2), clip=0.2, beta=0.5, weight=2.0, kl_BD=kl)
    assert loss.item() == pytest.approx(2.0 * 0.5 * (0.3 + 0.1 + 0.2) / 2)
    loss.backward()  # type: ignore[no-untyped-call]
    assert kl.grad is not None
    assert kl.grad.tolist() == [[0.5, 0.0], [0.5, 0.5]]
    assert (stats.kl_sum, stats.decisions) == (pytest.approx(0.6), 3)


GOOD: dict[str, Any] = {
    "new_BD": torch.zeros(2, 3),
    "old_BD": torch.zeros(2, 3),
    "ref_BD": torch.zeros(2, 3),
    "mask_BD": ones(2, 3),
    "advantage_B": torch.zeros(2),
    "clip": 0.2,
    "beta": 0.01,
    "weight": 1.0,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"old_BD": torch.zeros(3)}, r"\[2, 3\], \[3\]"),
        ({"ref_BD": torch.zeros(1, 3)}, r"\[1, 3\]"),
        ({"advantage_B": torch.zeros(2, 1)}, r"advantages \[2, 1\]"),
        ({"advantage_B": torch.zeros(3)}, r"advantages \[3\]"),
        ({"mask_BD": torch.ones(2, 3)}, "mask_BD is torch.float32"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"clip": 1.0}, "clip is 1.0"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"ref_BD": None}, "beta is 0.01"),
        ({"group_size": 0}, "0 rollouts"),
        ({"sensitivity": 0.0}, "sensitivity is 0.0"),
    ],
)
def test_invalid_input_is_refused_with_its_value(change: dict[str, Any], words: str) -> None:
    clipped_loss(**GOOD)
    with pytest.raises(ValueError, match=words):
        clipped_loss(**GOOD | change)
