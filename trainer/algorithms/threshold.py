"""The screening threshold T of Dynamic Group Scaling, and controllers that move it. Pure.

A preview passes when its surrogate score exceeds T. After each iteration a controller moves T towards the
(1 - target_pass_rate) quantile of the scores. Concepts and pathways differ in level, so each has its own state.

Sync-R1's law (eq. 7) is kept as `Paper`, because it does not do what the paper's section D.4 says:

* Sign. ln T' = (1 + mu*Delta) ln T, and ln T < 0 on (0, 1): a pass rate that is too high lowers T. Eq. 29 drops the
  factor ln T*, which hides this. For scores ~ N(.5, .1) an error grows by the factor 1.12 per iteration: unstable.
* Damping. mu - eps0 = -1.88 does not reduce the gain; it reverses its sign and multiplies it by 15.7.
* Domain. T = 0 and T = 1 are fixed points; T <= 0, which cosines allow, is undefined.
* Estimator. Drawing until G pass makes G/N biased upwards (.272 at p = .25); (G-1)/(N-1) is unbiased.

tests/numerics/test_threshold_controllers.py measures them all. `Quantile` is the default, `Power` the smallest repair
of eq. 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

START = 0.5  # first T of the power laws: the paper names none, this is its code's
WARM_UP = 5  # iterations in which `Quantile` averages instead of tracking, to leave a bad start quickly


@dataclass(frozen=True, slots=True)
class ThresholdState:
    """A threshold and its history; `threshold` None keeps every preview.

    trend      tau of eq. 7, the moving average of the steps of T; 0 if the controller uses none
    iteration  updates so far
    """

    threshold: float | None = None
    trend: float = 0.0
    iteration: int = 0


class ThresholdController(Protocol):
    """A rule that moves T. A controller holds constants only; what changes is in the state."""

    def initial_state(self) -> ThresholdState:
        """Return the state before the first iteration."""
        ...

    def update(
        self, state: ThresholdState, scores: Sequence[float], drawn: int, passed: int, capped: bool
    ) -> ThresholdState:
        """Return the state for the next iteration. An iteration has all groups of a step that T screened.

        scores  every score measured in this iteration, including those of rejected previews
        drawn   previews drawn, >= len(scores); missing scores do not count in the pass rate
        passed  scores above T, whether kept or not
        capped  drawing of a group stopped at its cap, not at a full group

        Without any score neither threshold nor trend changes. Raises ValueError for counts that contradict each other
        and for a score that is NaN or infinite.
        """
        ...


@dataclass(frozen=True, slots=True)
class Quantile:
    """Trend-aware tracking of the empirical quantile: the default, which deviates from eq. 7.

        q_k = the (1 - target_pass_rate) quantile of all scores,    e_k = q_k - T_k
        T_{k+1} = T_k + gain * e_k,    tau_{k+1} = eta tau_k + (1 - eta)(T_{k+1} - T_k)
        gain = max(1 - eta, 1/(k+1)) for k < 5, then 1 - eta, divided by eps0 when tau_k e_k < 0

    eta and eps0 mean what they mean in Sync-R1 (memory; damping on trend conflict); mu is not needed. The rule is
    equivariant under x -> a x + b (a > 0), so scores may have any level, scale and sign. The first iteration sets T
    (gain 1), and keeps all previews unless `start` is given. Scores equal to T do not pass, as in the paper: a
    surrogate with few distinct values runs into the cap, and `KeepAll` suits it better.
    """

    target_pass_rate: float = 0.25
    eta: float = 0.8
    eps0: float = 2.0
    start: float | None = None

    def initial_state(self) -> ThresholdState:
        return ThresholdState(self.start)

    def update(
        self, state: ThresholdState, scores: Sequence[float], drawn: int, passed: int, capped: bool
    ) -> ThresholdState:
        _check_counts(scores, drawn)
        if not scores:
            return state
        quantile = float(np.quantile(np.asarray(scores, dtype=np.float64), 1 - self.target_pass_rate))
        if state.threshold is None:
            return ThresholdState(quantile, state.trend, state.iteration + 1)
        error = quantile - state.threshold
        gain = 1 - self.eta
        if state.iteration < WARM_UP:
            gain = max(gain, 1 / (state.iteration + 1))
        elif state.trend * error < 0:
            gain /= self.eps0
        return _moved(state, state.threshold + gain * error, self.eta)


@dataclass(frozen=True, slots=True)
class Power:
    """Eq. 7, sign corrected, without damping: T' = T^(1 - mu*Delta), T clamped to [.001, .999].

    Delta = (passed - 1)/(n - 1) - target_pass_rate over the n scores: unbiased when drawing stops at the last pass of a
    group, or of each of several (sums of negative binomial counts are negative binomial), within .006 when it stops at
    the end of a batch of 12. At the cap the count does not depend on the passes, so passed/n is used. For scores in
    (0, 1).
    """

    start: float = START
    target_pass_rate: float = 0.25
    mu: float = 0.12

    def initial_state(self) -> ThresholdState:
        return ThresholdState(self.start)

    def update(
        self, state: ThresholdState, scores: Sequence[float], drawn: int, passed: int, capped: bool
    ) -> ThresholdState:
        threshold = _threshold(state)
        _check_counts(scores, drawn, passed)
        if not scores:
            return state
        unbiased = not capped and passed >= 1 and len(scores) > 1
        rate = (passed - 1) / (len(scores) - 1) if unbiased else passed / len(scores)
        moved = threshold ** (1 - self.mu * (rate - self.target_pass_rate))
        return ThresholdState(_clamp(moved, 1e-3), 0.0, state.iteration + 1)


@dataclass(frozen=True, slots=True)
class Paper:
    """Sync-R1, eq. 7, as printed; the module's docstring says what is wrong with it.

        T_{k+1} = T_k^(1 + (mu - eps0 [tau_k Delta_k < 0]) Delta_k),    tau_{k+1} = eta tau_k + (1 - eta)(T_{k+1} - T_k)

    Delta = passed/n - target_pass_rate over the n scores. The paper has no bounds; T is clamped to [1e-6, .999999],
    because it would never leave 0 or 1. For scores in (0, 1).
    """

    start: float = START
    target_pass_rate: float = 0.25
    mu: float = 0.12
    eta: float = 0.8
    eps0: float = 2.0

    def initial_state(self) -> ThresholdState:
        return ThresholdState(self.start)

    def update(
        self, state: ThresholdState, scores: Sequence[float], drawn: int, passed: int, capped: bool
    ) -> ThresholdState:
        threshold = _threshold(state)
        _check_counts(scores, drawn, passed)
        if not scores:
            return state
        delta = passed / len(scores) - self.target_pass_rate
        conflict = state.trend * delta < 0
        moved = threshold ** (1 + (self.mu - self.eps0 * conflict) * delta)
        return _moved(state, _clamp(moved, 1e-6), self.eta)


@dataclass(frozen=True, slots=True)
class KeepAll:
    """No screen: T stays None and the first G previews are the group, as in GRPO without DGS."""

    def initial_state(self) -> ThresholdState:
        return ThresholdState()

    def update(
        self, state: ThresholdState, scores: Sequence[float], drawn: int, passed: int, capped: bool
    ) -> ThresholdState:
        _check_counts(scores, drawn)
        return ThresholdState(None, 0.0, state.iteration + 1)


def make_controller(name: str, target_pass_rate: float) -> ThresholdController:
    """Create the controller that the settings name: "quantile", "power", "paper" or "none"."""
    controllers: dict[str, ThresholdController] = {
        "quantile": Quantile(target_pass_rate),
        "power": Power(target_pass_rate=target_pass_rate),
        "paper": Paper(target_pass_rate=target_pass_rate),
        "none": KeepAll(),
    }
    return controllers[name]


def _moved(state: ThresholdState, threshold: float, eta: float) -> ThresholdState:
    assert state.threshold is not None
    trend = eta * state.trend + (1 - eta) * (threshold - state.threshold)
    return ThresholdState(threshold, trend, state.iteration + 1)


def _clamp(threshold: float, margin: float) -> float:
    return min(max(threshold, margin), 1 - margin)


def _threshold(state: ThresholdState) -> float:
    if state.threshold is None or not 0 < state.threshold < 1:
        raise ValueError(
            f"the threshold is {state.threshold}, but this controller needs one in (0, 1); begin with its `start`, "
            "or use the quantile controller"
        )
    return state.threshold


def _check_counts(scores: Sequence[float], drawn: int, passed: int = 0) -> None:
    if not 0 <= passed <= len(scores) <= drawn:
        raise ValueError(f"{passed} passed of {len(scores)} scores of {drawn} previews; none may exceed the next")
    for index, score in enumerate(scores):
        if not math.isfinite(score):
            raise ValueError(f"score {index} is {score}; leave out a missing score")
