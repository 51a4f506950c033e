"""The effect of screening on the gradient (Sync-R1, theorem 3.1 and corollary 3.2), in closed form and by simulation.

The model: a Gaussian policy with h = grad log pi ~ N(0, I_8), reward R = .6 h_1 + .8 noise, surrogate score
R~ = rho R + sqrt(1 - rho^2) noise. A group's gradient is mean(A_i h_i), its signal-to-noise ratio
|mean|^2 / trace(cov).
"""

from __future__ import annotations

import os
from statistics import NormalDist

import numpy as np
import pytest
import torch

from trainer.algorithms.advantage import Slope, advantages, population_baseline
from trainer.algorithms.screen import screen

NORMAL = NormalDist()
GROUP, PASS_RATE = 9, 0.25
Z = NORMAL.inv_cdf(1 - PASS_RATE)
GROUPS = 40_000 if os.environ.get("SYNOD_FULL") else 2_500


def kept_variance(p: float) -> float:
    """v(p) = Var(Z | Z > z_p) = 1 + z lam - lam^2, the variance of a normal score above its (1 - p) quantile."""
    z = NORMAL.inv_cdf(1 - p)
    mills = NORMAL.pdf(z) / p
    return 1 + z * mills - mills**2


def gamma(rho: float, p: float) -> float:
    """The factor by which the screen scales the reward's variance and its covariance with the gradient."""
    return 1 - rho**2 * (1 - kept_variance(p))


@pytest.mark.parametrize(
    ("p", "v"),
    [(0.5, 0.363), (0.25, 0.2416), (0.235, 0.2348), (0.23, 0.2325), (0.2, 0.2186), (0.1, 0.169), (0.01, 0.097)],
)
def test_screened_variance(p: float, v: float) -> None:
    assert kept_variance(p) == pytest.approx(v, abs=5e-4 if p != 0.25 else 5e-5)
    scores = np.random.default_rng(0).standard_normal(100_000)
    kept = screen(scores.tolist(), NORMAL.inv_cdf(1 - p), len(scores))
    assert kept.pass_rate == pytest.approx(p, abs=0.005)
    assert np.var(scores[list(kept.indices)]) == pytest.approx(v, rel=0.01 / p**0.5)


def test_theorem_3_1_holds_above_pass_rate_2346() -> None:
    low, high = 0.2, 0.3
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if kept_variance(middle) > middle else (low, middle)
    assert low == pytest.approx(0.23458, abs=5e-6)
    assert all(kept_variance(p) > p for p in np.linspace(0.01, 0.234, 50))
    assert all(kept_variance(p) <= p for p in np.linspace(0.235, 0.999, 50))


@pytest.mark.parametrize(("rho", "factor"), [(0.3, 0.932), (0.5, 0.810), (0.7, 0.628), (0.9, 0.386)])
def test_the_factor_of_variance_and_signal(rho: float, factor: float) -> None:
    assert gamma(rho, PASS_RATE) == pytest.approx(factor, abs=5e-4)


def ratio(gradients: list[np.ndarray]) -> float:
    gradient = np.asarray(gradients)
    return float(np.sum(gradient.mean(0) ** 2) / np.trace(np.cov(gradient.T)))


def simulate(rho: float, groups: int = GROUPS) -> dict[str, float]:
    """The signal-to-noise ratio of three ways to choose a group, relative to no screen, and the mean fitted slope."""
    rng = np.random.default_rng(1)
    found: dict[str, list[np.ndarray]] = {"plain": [], "screened": [], "population": []}
    slope, slopes = Slope(), list[float]()
    for _ in range(groups):
        h = rng.standard_normal((160, 8))
        reward = 0.6 * h[:, 0] + 0.8 * rng.standard_normal(160)
        score = rho * reward + np.sqrt(1 - rho**2) * rng.standard_normal(160)
        passing = np.flatnonzero(score > Z)
        drawn = score[: passing[GROUP - 1] + 1].tolist()
        kept = list(screen(drawn, Z, GROUP).indices)
        scores = [drawn[i] for i in kept]
        shift = population_baseline(slope, scores, drawn)
        for name, chosen, moved in (("plain", range(GROUP), 0.0), ("screened", kept, 0.0), ("population", kept, shift)):
            rewards = torch.from_numpy(reward[list(chosen)])
            advantage = advantages(rewards, torch.ones(GROUP, dtype=torch.bool), baseline_shift=moved).numpy()
            found[name].append(advantage @ h[list(chosen)] / GROUP)
        slope = slope.update(scores, reward[kept].tolist())
        slopes.append(slope.value)
    plain = ratio(found["plain"])
    return {name: ratio(g) / plain for name, g in found.items()} | {"slope": float(np.mean(slopes[100:]))}


def test_population_baseline_keeps_the_signal_of_screening() -> None:
    """At rho = .5 corollary 3.2 claims over 1.23; measured .83, about gamma, and 1.30 with the population baseline."""
    at = simulate(0.5)
    assert at["screened"] == pytest.approx(0.83, abs=0.08)
    assert at["screened"] == pytest.approx(gamma(0.5, PASS_RATE), abs=0.08)
    assert at["population"] == pytest.approx(1.28, abs=0.10)
    assert at["slope"] == pytest.approx(0.5, abs=0.04)  # three errors: one slope's is .1, of 20 groups' memory


@pytest.mark.skipif("SYNOD_FULL" not in os.environ, reason="SYNOD_FULL=1 runs all correlations at 40,000 groups")
@pytest.mark.parametrize(("rho", "screened", "population"), [(0.3, 0.94, 1.11), (0.7, 0.65, 1.57), (0.9, 0.40, 1.91)])
def test_signal_at_every_correlation(rho: float, screened: float, population: float) -> None:
    at = simulate(rho)
    assert at["screened"] == pytest.approx(screened, abs=0.03)
    assert at["population"] == pytest.approx(population, abs=0.12)


def test_population_baseline_estimates_the_mean_of_all_previews() -> None:
    """mean(R kept) + shift against the true mean 0 of all previews; without the shift the kept mean is rho lam off."""
    rng = np.random.default_rng(2)
    rho, slope, means, baselines = 0.7, Slope(), [], []
    for _ in range(2_000):
        reward = rng.standard_normal(160)
        score = rho * reward + np.sqrt(1 - rho**2) * rng.standard_normal(160)
        drawn = score[: np.flatnonzero(score > Z)[GROUP - 1] + 1].tolist()
        kept = list(screen(drawn, Z, GROUP).indices)
        scores = [drawn[i] for i in kept]
        means.append(reward[kept].mean())
        baselines.append(means[-1] + population_baseline(slope, scores, drawn))
        slope = slope.update(scores, reward[kept].tolist())
    assert np.mean(means) == pytest.approx(rho * NORMAL.pdf(Z) / PASS_RATE, abs=0.03)
    assert np.mean(baselines[100:]) == pytest.approx(0.0, abs=0.04)
