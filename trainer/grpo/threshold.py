"""The screening threshold T of Dynamic Group Scaling: laws that hold the pass rate near its target. Pure.

A preview passes when its surrogate score exceeds T. After each iteration a law moves the state's T towards the
(1 - target_pass_rate) quantile of the scores. Concepts and pathways differ in level, so each has a state of its own.

Sync-R1's own law (eq. 7) is kept as `Paper`, by name, because it does not do what its section D.4 says:

* Sign. ln T' = (1 + mu*Delta) ln T, and ln T < 0 on (0, 1): a pass rate that is too high lowers T. Eq. 29 drops the
  factor ln T* and so hides it. For scores ~ N(.5, .1) an error grows by the factor 1.12 an iteration: unstable.
* Damping. mu - eps0 = -1.88 is no smaller gain but one of the opposite sign, 15.7 times as large.
* Domain. T = 0 and T = 1 are fixed points; T <= 0, possible for cosines, is undefined.
* Estimator. Drawing until G pass makes G/N biased up (.272 at p = .25); (G-1)/(N-1) is unbiased.

tests/numerics/test_threshold_controllers.py measures all laws. `Quantile` is the default, `Power` the smallest repair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

START = 0.5  # the paper names no first threshold; this is its public code's
WARM_UP = 5  # iterations in which `Quantile` averages instead of tracking: a start far off is left at once


@dataclass(frozen=True, slots=True)
class ThresholdState:
    """A threshold and its history; `threshold` None keeps every preview. `dataclasses.asdict` gives its JSON form.

    trend      tau of eq. 7, the moving average of the steps of T; 0 where a law uses none
    iteration  updates made so far
    """

    threshold: float | None = None
    trend: float = 0.0
    iteration: int = 0


class ThresholdController(Protocol):
    """One way to move T. Laws hold constants only; what changes is in the state."""

    def initial_state(self) -> ThresholdState:
        """The state before the first iteration."""
        ...

    def update(
        self, state: ThresholdState, scores: Sequence[float], drawn: int, passed: int, capped: bool
    ) -> ThresholdState:
        """The state for the next iteration.

        scores  every score measured in this iteration, those of rejected previews included
        drawn   previews drawn, >= len(scores): a lost score is no evidence, so the pass rate is taken over `scores`
        passed  scores above T, however many were kept
        capped  drawing stopped at its cap instead of at a full group

        An iteration without any score changes neither threshold nor trend. ValueError: counts that contradict each
        other, a score that is NaN or infinite.
        """
        ...


@dataclass(frozen=True, slots=True)
class Quantile:
    """Trend-aware tracking of the empirical quantile; the default, and our deviation from eq. 7.

        q_k = the (1 - target_pass_rate) quantile of all scores,    e_k = q_k - T_k
        T_{k+1} = T_k + gain * e_k,    tau_{k+1} = eta tau_k + (1 - eta)(T_{k+1} - T_k)
        gain = max(1 - eta, 1/(k+1)) for k < 5, then 1 - eta, divided by eps0 when tau_k e_k < 0

    eta and eps0 keep the meaning Sync-R1 gives them (memory; damping on trend conflict), mu is not needed. The law is
    equivariant under x -> a x + b (a > 0), so scores may have any level, scale and sign. The first iteration sets T
    (gain 1); `start` screens that iteration only, and None keeps all in it. Scores that tie at their quantile do not
    pass (R~ > T, as the paper has it): a surrogate of few distinct values runs into the cap; `KeepAll` suits it better.
    """

    target_pass_rate: float = 0.25
    eta: float = 0.8
    eps0: float = 2.0
    start: float | None = None

    def __post_init__(self) -> None:
        _check_open_unit("target_pass_rate", self.target_pass_rate)
        _check_memory(self.eta)
        if not 1 <= self.eps0 < math.inf:
            raise ValueError(f"eps0 is {self.eps0}, but it divides the gain; give 1 (no damping) or more")
        if self.start is not None and not math.isfinite(self.start):
            raise ValueError(f"start is {self.start}; give a finite score, or null to keep all at first")

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
    """Eq. 7 with its sign corrected and without its damping: T' = T^(1 - mu*Delta), T kept in [.001, .999].

    Delta = (passed - 1)/(n - 1) - target_pass_rate over the n scores: unbiased when drawing stops at the group's last
    pass, within .006 when it stops at the end of a batch of 12. At the cap the count is not tied to the passes, so
    passed/n is taken. Without the damping there is no trend to follow. For scores in (0, 1).
    """

    start: float = START
    target_pass_rate: float = 0.25
    mu: float = 0.12

    def __post_init__(self) -> None:
        _check_open_unit("target_pass_rate", self.target_pass_rate)
        _check_open_unit("start", self.start)
        _check_sensitivity(self.mu)

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
    """Sync-R1, eq. 7, as printed; see above for what is wrong with it.

        T_{k+1} = T_k^(1 + (mu - eps0 [tau_k Delta_k < 0]) Delta_k),    tau_{k+1} = eta tau_k + (1 - eta)(T_{k+1} - T_k)

    Delta = passed/n - target_pass_rate over the n scores. The paper bounds nothing; T is kept in [1e-6, .999999], since
    at 0 and 1 it would stay for ever. For scores in (0, 1).
    """

    start: float = START
    target_pass_rate: float = 0.25
    mu: float = 0.12
    eta: float = 0.8
    eps0: float = 2.0

    def __post_init__(self) -> None:
        _check_open_unit("target_pass_rate", self.target_pass_rate)
        _check_open_unit("start", self.start)
        _check_sensitivity(self.mu)
        _check_memory(self.eta)
        if not 0 <= self.eps0 < math.inf:
            raise ValueError(f"eps0 is {self.eps0}; give 0 (no damping) or more; the paper's is 2")

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
    """No screen: T stays None and the first G previews drawn are the group, as in GRPO without DGS."""

    def initial_state(self) -> ThresholdState:
        return ThresholdState()

    def update(
        self, state: ThresholdState, scores: Sequence[float], drawn: int, passed: int, capped: bool
    ) -> ThresholdState:
        _check_counts(scores, drawn)
        return ThresholdState(None, 0.0, state.iteration + 1)


def make(name: str, target_pass_rate: float) -> ThresholdController:
    """Create the controller of a name in the settings: "quantile", "power", "paper" or "none"."""
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
            f"the state's threshold is {state.threshold}, but this law is a power of it and needs one in (0, 1); "
            "begin with its `start`, or use the quantile law"
        )
    return state.threshold


def _check_counts(scores: Sequence[float], drawn: int, passed: int = 0) -> None:
    if not 0 <= passed <= len(scores) <= drawn:
        raise ValueError(f"{passed} passed of {len(scores)} scores of {drawn} previews drawn; none may exceed the next")
    for index, score in enumerate(scores):
        if not math.isfinite(score):
            raise ValueError(f"score {index} is {score}; leave out a score that was not measured")


def _check_open_unit(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value}; give a number between 0 and 1, both excluded")


def _check_memory(eta: float) -> None:
    if not 0 <= eta < 1:
        raise ValueError(f"eta is {eta}; give a memory from 0 (none) to below 1 (the paper's is .8)")


def _check_sensitivity(mu: float) -> None:
    if not 0 < mu < math.inf:
        raise ValueError(f"mu is {mu}; give a sensitivity above 0 (the paper's is .12)")
