"""Threshold controllers in closed loop against known figures, and eq. 7 of Sync-R1 as printed.

Previews score ~ N(m, s) and are drawn until 9 exceed T or 144 are drawn. The error of T against the true quantile,
(T - (m + .6745 s))/s, is averaged over iterations 20 to 99. SYNOD_FULL=1 takes ten times the seeds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from trainer.algorithms.threshold import Paper, Power, Quantile, ThresholdController, ThresholdState

FULL = bool(os.environ.get("SYNOD_FULL"))
GROUP, CAP, ITERATIONS = 9, 144, 100
Z = NormalDist().inv_cdf(0.75)
Level = Callable[[int], float]


@dataclass(frozen=True)
class Outcome:
    bias: float
    rms: float
    pass_rate: float
    previews: float
    capped: float


def run(
    controller: ThresholdController, seed: int, *, mean: Level, sd: float = 0.1, jitter: float = 0.0
) -> tuple[Outcome, list[float]]:
    """Simulate 100 iterations. `jitter` is the offset of each prompt, in units of sd."""
    rng = np.random.default_rng(seed)
    tracker: ThresholdState = controller.initial_state()
    thresholds, errors, rates, previews, capped = [], [], [], [], []
    for k in range(ITERATIONS):
        scores = mean(k) + sd * (rng.standard_normal(CAP) + jitter * rng.standard_normal())
        threshold = -np.inf if tracker.threshold is None else tracker.threshold
        passing = np.flatnonzero(scores > threshold)
        full = len(passing) >= GROUP
        drawn = int(passing[GROUP - 1]) + 1 if full else CAP
        if k >= 20:
            errors.append((threshold - mean(k) - Z * sd) / sd)
            rates.append(1 - NormalDist(mean(k), sd).cdf(threshold))
            previews.append(drawn)
            capped.append(not full)
        thresholds.append(float(threshold))
        tracker = controller.update(tracker, scores[:drawn].tolist(), drawn, min(len(passing), GROUP), not full)
    squares = float(np.sqrt(np.mean(np.square(errors))))
    averages = [float(np.mean(values)) for values in (rates, previews, capped)]
    return Outcome(float(np.mean(errors)), squares, *averages), thresholds


def average(
    controller: ThresholdController, seeds: int, *, mean: Level, sd: float = 0.1, jitter: float = 0.0
) -> Outcome:
    outcomes = [
        run(controller, seed, mean=mean, sd=sd, jitter=jitter)[0] for seed in range(10 * seeds if FULL else seeds)
    ]
    fields = np.mean([[o.bias, o.rms, o.pass_rate, o.previews, o.capped] for o in outcomes], axis=0)
    return Outcome(*fields.tolist())


def steady(k: int) -> float:
    return 0.5


def drift(k: int) -> float:
    return 0.5 + 0.1 * k / ITERATIONS


def jump(k: int) -> float:
    return 0.5 + 0.1 * (k >= ITERATIONS // 2)


# Errors of T in units of sigma. The seeds are many enough for the stated tolerance.
@pytest.mark.parametrize(
    ("controller", "setting", "rms"),
    [
        (Quantile(start=0.5), {"mean": steady}, 0.09),
        (Quantile(), {"mean": steady}, 0.09),
        (Quantile(start=0.5), {"mean": drift}, 0.08),
        (Quantile(start=0.5), {"mean": drift, "jitter": 0.3}, 0.13),
        (Quantile(start=0.5), {"mean": jump}, 0.21),
        (Quantile(start=0.5), {"mean": lambda k: 0.3, "sd": 0.03}, 0.09),
        (Quantile(), {"mean": lambda k: -0.2}, 0.085),
        (Quantile(), {"mean": lambda k: 50.0, "sd": 10.0}, 0.09),
        (Power(0.5), {"mean": steady}, 0.06),
        (Power(0.65), {"mean": steady}, 0.07),
        (Power(0.5), {"mean": drift}, 0.10),
        (Power(0.5), {"mean": jump}, 0.23),
        (Power(0.5), {"mean": lambda k: 0.3, "sd": 0.03}, 0.14),
        (Paper(0.5, eps0=0), {"mean": steady}, 5.65),
        (Paper(0.65, eps0=0), {"mean": steady}, 3.49),
        (Paper(0.5, eps0=0), {"mean": drift}, 6.25),
    ],
)
def test_rms_error_of_each_controller(controller: ThresholdController, setting: dict[str, Any], rms: float) -> None:
    assert average(controller, 40, **setting).rms == pytest.approx(rms, abs=0.03)


def test_eq_7_as_printed_does_not_hold_the_pass_rate() -> None:
    """Half of the runs have an RMS near .6 and some a large one: hence many seeds, and three standard errors."""
    outcome = average(Paper(0.5), 400, mean=steady)
    assert outcome.rms == pytest.approx(0.98, abs=0.05 if FULL else 0.16)
    assert outcome.bias == pytest.approx(0.69, abs=0.06 if FULL else 0.18)
    assert outcome.pass_rate == pytest.approx(0.173, abs=0.01)
    assert outcome.previews == pytest.approx(68, abs=4)
    assert outcome.capped == pytest.approx(0.20, abs=0.04)


@pytest.mark.parametrize("controller", [Quantile(), Power(0.5)])
def test_corrected_controllers_hold_the_target(controller: ThresholdController) -> None:
    outcome = average(controller, 40, mean=steady)
    assert outcome.pass_rate == pytest.approx(0.25, abs=0.015)
    assert outcome.previews == pytest.approx(36, abs=2.5)
    assert outcome.capped < 0.005


def test_eq_7_without_damping_diverges() -> None:
    """The target is .5674. With the corrected sign the same start and steps stay within two sigma of it."""
    for seed in range(10):
        below, above = (run(Paper(start, eps0=0), seed, mean=steady)[1] for start in (0.5, 0.65))
        assert below[-1] < 0.05
        assert above[-1] > 0.95
        for start in (0.5, 0.65):
            assert abs(run(Power(start), seed, mean=steady)[1][-1] - 0.5674) < 0.05


def test_linearised_error_of_eq_7_grows_and_of_power_shrinks() -> None:
    """dT'/dT at the fixed point by finite differences, with the pass rate in expectation: 1 -+ mu f(T) T ln T."""
    score, n = NormalDist(0.5, 0.1), 20_000
    target, width = score.inv_cdf(0.75), 0.01
    scores = [0.5] * n  # these controllers read their number only

    def step(controller: ThresholdController, threshold: float) -> float:
        passed = round((1 - score.cdf(threshold)) * n)
        after = controller.update(ThresholdState(threshold), scores, n, passed, False).threshold
        assert after is not None
        return after

    curvature = 0.12 * score.pdf(target) * target * np.log(target)
    for controller, factor in ((Paper(0.5, eps0=0), 1 - curvature), (Power(0.5), 1 + curvature)):
        slope = (step(controller, target + width) - step(controller, target - width)) / (2 * width)
        assert slope == pytest.approx(factor, abs=2e-3)
    assert 1 - curvature == pytest.approx(1.123, abs=5e-4)


def test_stopping_at_a_full_group_biases_the_pass_rate() -> None:
    """E[9/N] = .272 at p = .25; E[8/(N-1)] = .250, which `Power` uses, and .248 in batches of 12."""
    rng = np.random.default_rng(0)
    passes = rng.random((15_000, 240)) < 0.25
    last = np.argmax(np.cumsum(passes, axis=1) == GROUP, axis=1) + 1
    assert np.mean(GROUP / last) == pytest.approx(0.272, abs=0.003)
    assert np.mean((GROUP - 1) / (last - 1)) == pytest.approx(0.250, abs=0.003)
    drawn = -(-last // 12) * 12
    passed = np.take_along_axis(np.cumsum(passes, axis=1), drawn[:, None] - 1, axis=1)[:, 0]
    assert np.mean((passed - 1) / (drawn - 1)) == pytest.approx(0.248, abs=0.003)

    scores = [0.0] * 36
    after = Power(0.5).update(ThresholdState(0.5), scores, 36, 9, False).threshold
    assert after == pytest.approx(0.5 ** (1 - 0.12 * (8 / 35 - 0.25)), abs=1e-12)
