"""The clipped loss against a naive loop, finite differences, and exact expectations over a categorical policy."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainer.algorithms.losses import clipped_loss

CLIP, BETA, WEIGHT = 0.2, 0.3, 0.7
Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def case(seed: int, rows: int = 4, columns: int = 6) -> Case:
    """new, old, ref, mask and advantage in float64, with ratios on all sides of both clips."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 3 - 0.5
    shift = (torch.rand(rows, columns, generator=generator, dtype=torch.float64) - 0.5) * 1.2
    near = (shift.exp() - (1 + CLIP)).abs().minimum((shift.exp() - (1 - CLIP)).abs()) < 1e-3
    new = old + torch.where(near, 0.0, shift)
    ref = old + (torch.rand(rows, columns, generator=generator, dtype=torch.float64) - 0.5)
    mask = torch.rand(rows, columns, generator=generator) < 0.7
    return new, old, ref, mask, torch.randn(rows, generator=generator, dtype=torch.float64)


def naive(new: Tensor, old: Tensor, ref: Tensor, mask: Tensor, advantage: Tensor) -> tuple[float, int]:
    """Eq. 9 in Python floats, and the number of clipped decisions."""
    objective, flat = 0.0, 0
    for i in range(len(new)):
        for j in range(len(new[i])):
            if not mask[i, j]:
                continue
            a = float(advantage[i])
            ratio = math.exp(float(new[i, j]) - float(old[i, j]))
            bounded = min(max(ratio, 1 - CLIP), 1 + CLIP)
            flat += bounded * a < ratio * a
            d = float(ref[i, j]) - float(new[i, j])
            objective += WEIGHT * (min(ratio * a, bounded * a) - BETA * (math.exp(d) - d - 1))
    return -objective / len(new), flat


@pytest.mark.parametrize("seed", range(20))
def test_against_a_naive_loop(seed: int) -> None:
    values = case(seed)
    loss, stats = clipped_loss(*values, clip=CLIP, beta=BETA, weight=WEIGHT)
    expected, flat = naive(*values)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert stats.clipped == flat
    new, old, ref, mask, _ = values
    ratios = (new - old)[mask].exp()
    d = (ref - new)[mask]
    assert stats.decisions == int(mask.sum())
    assert (stats.low, stats.high) == (pytest.approx(ratios.min().item()), pytest.approx(ratios.max().item()))
    assert stats.kl == pytest.approx((d.exp() - d - 1).mean().item(), rel=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_the_gradient_against_finite_differences(seed: int) -> None:
    new, old, ref, mask, advantage = case(seed)
    variable = new.clone().requires_grad_()
    loss, _ = clipped_loss(variable, old, ref, mask, advantage, clip=CLIP, beta=BETA, weight=WEIGHT)
    loss.backward()
    assert variable.grad is not None
    step = 1e-6
    for i in range(len(new)):
        for j in range(len(new[i])):
            up, down = new.clone(), new.clone()
            up[i, j] += step
            down[i, j] -= step
            slope = (naive(up, old, ref, mask, advantage)[0] - naive(down, old, ref, mask, advantage)[0]) / (2 * step)
            assert variable.grad[i, j].item() == pytest.approx(slope, abs=1e-8)


def test_gradcheck() -> None:
    new, old, ref, mask, advantage = case(7, 2, 3)

    def of(x: Tensor) -> Tensor:
        return clipped_loss(x, old, ref, mask, advantage, clip=CLIP, beta=BETA, weight=WEIGHT)[0]

    assert torch.autograd.gradcheck(of, (new.requires_grad_(),))


def test_only_the_policy_gets_a_gradient() -> None:
    tensors = case(1)
    new, old, ref, advantage = (tensors[i].clone().requires_grad_() for i in (0, 1, 2, 4))
    loss, _ = clipped_loss(new, old, ref, tensors[3], advantage, clip=CLIP, beta=BETA, weight=WEIGHT)
    loss.backward()
    assert new.grad is not None
    assert (old.grad, ref.grad, advantage.grad) == (None, None, None)


def every_action(seed: int = 0, actions: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and log-probabilities of a categorical policy, and of its reference."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(actions, dtype=torch.float64, generator=generator).requires_grad_()
    reference = torch.randn(actions, dtype=torch.float64, generator=generator).log_softmax(0)
    return logits, logits.log_softmax(0), reference


def test_k3_has_mean_kl_and_gradient_of_reverse_kl() -> None:
    """Sum over actions of pi(a) k3(a) = KL(pi || ref); that of pi(a) grad k3(a) = grad KL(ref || pi)."""
    logits, logp, reference = every_action()
    mean, gradient = 0.0, torch.zeros_like(logits)
    for a in range(len(logits)):
        one = torch.ones(1, 1, dtype=torch.bool)
        row = logp[a].reshape(1, 1)
        loss, stats = clipped_loss(
            row, row, reference[a].reshape(1, 1), one, torch.zeros(1), clip=CLIP, beta=1.0, weight=1.0
        )
        assert stats.kl is not None
        mean += logp[a].exp().item() * stats.kl
        gradient += logp[a].exp().detach() * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    assert mean == pytest.approx((logp.exp() * (logp - reference)).sum().item(), rel=1e-12)
    reversed_kl = (reference.exp() * (reference - logp)).sum()
    assert torch.allclose(gradient, torch.autograd.grad(reversed_kl, logits)[0], atol=1e-14)


def test_mean_gradient_is_policy_gradient() -> None:
    """Sum over actions of pi(a) grad loss(a) = -grad E[R]: exact, at ratio 1, for a reward with any baseline."""
    logits, logp, _ = every_action(1)
    reward = torch.tensor([0.3, 1.0, -0.5, 0.2, 0.9], dtype=torch.float64)
    for baseline in (0.0, 0.4):
        gradient = torch.zeros_like(logits)
        for a in range(len(logits)):
            row, one = logp[a].reshape(1, 1), torch.ones(1, 1, dtype=torch.bool)
            loss, _ = clipped_loss(
                row, row, None, one, reward[a].reshape(1) - baseline, clip=CLIP, beta=0.0, weight=1.0
            )
            gradient += logp[a].exp().detach() * torch.autograd.grad(loss, logits, retain_graph=True)[0]
        (expected,) = torch.autograd.grad((logp.exp() * reward).sum(), logits, retain_graph=True)
        assert torch.allclose(gradient, -expected, atol=1e-14)


def test_k3_is_precise_near_zero() -> None:
    """In float32 exp(d) - 1 - d of d = 1e-3 has only three digits, and a policy near its reference has such d."""
    d = 1e-3
    new, ref = torch.tensor([[-1e-3]]), torch.tensor([[0.0]])
    _, stats = clipped_loss(
        new, new, ref, torch.ones(1, 1, dtype=torch.bool), torch.ones(1), clip=CLIP, beta=1.0, weight=1.0
    )
    assert stats.kl == pytest.approx(math.expm1(d) - d, rel=1e-3)
