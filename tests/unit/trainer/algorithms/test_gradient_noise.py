"""Signal and noise of a gradient: by hand, against naive loops, without bias, and with errors that are right."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.algorithms.gradient_noise import gradient_noise, pair_cosine


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_gradients_by_hand() -> None:
    """(1, 0) and (1, 1): S = (2, 1), |S|^2 = 5, Q = 3; their product 1 over the mean square 1.5."""
    assert pair_cosine(5.0, 3.0, 2) == pytest.approx(1 / 1.5)
    assert pair_cosine(4.0, 2.0, 2) == 1.0  # equal
    assert pair_cosine(0.0, 2.0, 2) == -1.0  # opposite
    assert pair_cosine(0.0, 0.0, 2) is pair_cosine(1.0, 1.0, 1) is None


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 99))
def test_pair_cosine_is_the_mean_over_pairs(count: int, size: int, seed: int) -> None:
    gradients = normal(count, size, seed=seed)
    pairs = [float(a @ b) for a, b in itertools.permutations(gradients, 2)]
    squares = [float(a @ a) for a in gradients]
    found = pair_cosine(float(gradients.sum(0).square().sum()), math.fsum(squares), count)
    assert found == pytest.approx(sum(pairs) / len(pairs) / (sum(squares) / count), abs=1e-9)


def test_estimates_against_naive_loops() -> None:
    """Signal: the mean product of pairs. Noise: the sum of variances over coordinates, divided by n - 1."""
    gradients = normal(6, 4, seed=0) + 0.5
    found = gradient_noise(gradients @ gradients.T)
    pairs = [float(a @ b) for a, b in itertools.combinations(gradients, 2)]
    assert found.signal == pytest.approx(sum(pairs) / len(pairs))
    assert found.noise == pytest.approx(float(gradients.var(0, correction=1).sum()))
    assert found.ratio == pytest.approx(found.signal / found.noise)
    without = [torch.cat((gradients[:i], gradients[i + 1 :])) for i in range(6)]
    signals = [(float(one.sum(0).square().sum()) - float(one.square().sum())) / 20 for one in without]
    mean = sum(signals) / 6
    assert found.signal_error == pytest.approx(math.sqrt(5 / 6 * sum((one - mean) ** 2 for one in signals)))


def test_the_cosine_is_that_of_halves() -> None:
    """Equal gradients agree fully, orthogonal ones not at all; of known signal, m r / (1 + m r) for halves of m."""
    equal, orthogonal = gradient_noise(torch.ones(8, 8)), gradient_noise(torch.eye(8))
    assert (equal.cosine, equal.noise, equal.ratio) == (pytest.approx(1.0), 0.0, math.inf)
    assert (orthogonal.cosine, orthogonal.signal) == (0.0, 0.0)
    signal = torch.zeros(4000, dtype=torch.float64)
    signal[0] = math.sqrt(0.1 * 4000)  # ratio .1
    gradients = normal(40, 4000, seed=1) + signal
    found = gradient_noise(gradients @ gradients.T)
    assert found.ratio == pytest.approx(0.1, abs=4 * found.ratio_error)
    assert found.cosine == pytest.approx(2.0 / 3.0, abs=0.05)


def test_estimates_have_no_bias_and_right_errors() -> None:
    """Over 200 repetitions: the mean is right within 3 errors, the reported error within a quarter of the spread."""
    truth = 0.05
    signal = torch.zeros(50, dtype=torch.float64)
    signal[0] = math.sqrt(truth * 50)
    found = []
    for seed in range(200):
        gradients = normal(16, 50, seed=seed) + signal
        found.append(gradient_noise(gradients @ gradients.T))
    for name, expected in (("signal", truth * 50), ("noise", 50.0)):
        values = torch.tensor([getattr(one, name) for one in found])
        errors = torch.tensor([getattr(one, f"{name}_error") for one in found])
        spread = float(values.std())
        assert abs(float(values.mean()) - expected) < 3 * spread / math.sqrt(200)
        assert float(errors.square().mean().sqrt()) == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize("gram", [torch.eye(3), torch.zeros(4, 5), torch.full((4, 4), math.nan)])
def test_products_that_say_nothing_are_refused(gram: Tensor) -> None:
    with pytest.raises(ValueError, match=r"the products of gradients are .* at least four groups"):
        gradient_noise(gram)
