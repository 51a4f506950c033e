"""Advantages: Dr.GRPO (Sync-R1, app. C), GRPO, GDPO, clamps, masks, and a baseline for screened groups. Pure.

Suffixes: G the rollouts of one group, V those with a reward, K scorers.

Why a second baseline. Sync-R1's corollary 3.2 states that screening raises the gradient's signal-to-noise ratio. Its
eq. 26 assumes a signal proportional to E[R]. But E[grad log pi] = 0, so a mean reward adds no signal, and centring the
group removes it. The signal is Cov(R, grad log pi | kept). The screen reduces it by the same factor as the variance,

    gamma = 1 - rho^2 (1 - v(p)),    v(p) = 1 + z lam - lam^2,    z = Phi^-1(1 - p),    lam = phi(z)/p

(rho: correlation of reward and surrogate, p: pass rate; Gaussian model), so the ratio changes by gamma < 1. (Theorem
3.1's bound, v(p) <= p, holds only for p >= .2346.) Relative to the mean reward of all previews, the kept rollouts
have a positive advantage on average; this is the signal that selection adds, and `population_baseline` keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainer.algorithms.aggregate import GroupRewards, Moments
from trainer.types import Aggregation

Normalise = Literal["none", "group_std", "batch_std", "group_std_paper"]
MEMORY = 0.95  # decay of the slope's sums per group: about the last 20 groups count
PAPER_EPSILON = 1e-4  # of UniRL-Zero's and Flow-GRPO's code, and of trl
EVIDENCE = 16.0  # degrees of freedom before the slope is used: three full groups of 9, because older ones fade


def advantages(reward_G: Tensor, valid_G: Tensor, *, baseline_shift: float = 0.0) -> Tensor:
    """Return A_i = R_i - (mean of the valid R + baseline_shift), and 0 where the reward is missing.

    Dr.GRPO: no division by the group's standard deviation. Shape [G], dtype of reward_G. Where valid_G (bool) is
    False, reward_G may hold anything, even NaN: the other advantages equal, bit for bit, those of the group without
    it. Raises ValueError for different shapes, a mask that is not bool, or a valid reward that is not finite.
    """
    _check_group(valid_G)
    if reward_G.shape != valid_G.shape or not reward_G.is_floating_point():
        raise ValueError(
            f"reward_G is {reward_G.dtype} {list(reward_G.shape)}, valid_G {list(valid_G.shape)}; "
            "give floats of the mask's shape"
        )
    if not math.isfinite(baseline_shift):
        raise ValueError(f"the baseline's shift is {baseline_shift}; give a finite number, 0 for the group's own mean")
    reward_V = reward_G[valid_G]
    if not bool(torch.isfinite(reward_V).all()):
        raise ValueError(f"a valid reward is not finite: {reward_V.tolist()}; mask missing rewards")
    advantage_G = torch.zeros_like(reward_G)
    if len(reward_V):
        advantage_G[valid_G] = reward_V - (reward_V.mean() + baseline_shift)
    return advantage_G


def step_advantages(
    groups: Sequence[GroupRewards],
    *,
    aggregation: Aggregation = "sum",
    normalise: Normalise = "none",
    shifts: Sequence[float] | None = None,
    epsilon: float | None = None,
    clamp: float | None = None,
) -> list[Tensor]:
    """Return the advantages [G] of every group of a step, in the dtype of its scores, and 0 where one is missing.

        "sum"   (R_i - mean(R) - shift) / s,   R_i = sum_k w_k R_ik
        "gdpo"  sum_k w_k (R_ik - mean(R_k)) / std(R_k) / s,   s: standard deviation of these sums over the step

    normalise  s of "sum": 1 (Dr.GRPO), the group's standard deviation (GRPO), or that of all rewards of the step, whose
               means differ between groups (trl's `scale_rewards = "batch"`). "group_std_paper": the group's with an
               epsilon of 1e-4, as in the code of UniRL-Zero and Flow-GRPO
    shifts     added to each group's mean, in units of the weighted sum (`population_baseline`); None for 0
    epsilon    added to each standard deviation, trl's is 1e-4; None: values without spread give exactly 0
    clamp      limits each advantage to [-clamp, clamp], which is 5 in UniRL-Zero's and Flow-GRPO's code; None: no limit

    A mean over the step is not subtracted from "gdpo": it is 0, because the mean of every group is. Without an epsilon
    a group without spread gets 0, except for "none", where its shift remains. Raises ValueError for "gdpo" with a
    normalisation or a shift, which are defined for "sum" only, and for a shift that is not finite.
    """
    shifts = [0.0] * len(groups) if shifts is None else shifts
    if normalise == "group_std_paper":
        normalise, epsilon = "group_std", PAPER_EPSILON
    if aggregation == "gdpo" and (normalise != "none" or any(shifts)):
        raise ValueError(
            f"aggregation is gdpo with normalise {normalise!r} and shifts {list(shifts)}; it normalises by itself, so "
            "give normalise 'none' and the group's own mean as the baseline"
        )
    terms = [group.terms(aggregation, epsilon) for group in groups]
    divisors = _divisors([Moments.of(term_VK) for term_VK in terms], aggregation, normalise, epsilon)
    found = []
    for group, term_VK, shift, divisor in zip(groups, terms, shifts, divisors, strict=True):
        centred = advantages(_scatter(term_VK.sum(1), group.valid_G), group.valid_G, baseline_shift=shift)
        advantage = (centred / divisor).to(group.value_GK.dtype)
        found.append(advantage if clamp is None else advantage.clamp(-clamp, clamp))
    return found


def _divisors(
    moments: Sequence[Moments],
    aggregation: Aggregation,
    normalise: Normalise,
    epsilon: float | None,
) -> list[float]:
    """Return what each group's centred rewards are divided by; infinity for a group without spread."""
    if aggregation == "sum" and normalise == "none":
        return [1.0] * len(moments)
    own = [found.divisor(epsilon) for found in moments]
    if aggregation == "sum" and normalise == "group_std":
        return own
    step = sum(moments, Moments()).divisor(epsilon)
    return [step if math.isfinite(divisor) else math.inf for divisor in own]


def _scatter(value_V: Tensor, valid_G: Tensor) -> Tensor:
    value_G = torch.zeros(valid_G.shape, dtype=value_V.dtype)
    value_G[valid_G] = value_V
    return value_G


@dataclass(frozen=True, slots=True)
class Slope:
    """The running regression slope of the reward R on the surrogate score R~.

    xy, xx   sums of centred products R~ R and R~ R~, decayed by MEMORY with each group
    freedom  the decayed sum of (pairs - 1)

    Products are centred within each group: otherwise prompts that are easy for both would look like a correlation.
    Selecting rollouts by R~ does not bias a slope on R~.
    """

    xy: float = 0.0
    xx: float = 0.0
    freedom: float = 0.0

    @property
    def value(self) -> float:
        """dR/dR~; 0 below EVIDENCE degrees of freedom, where the baseline is the group's own mean."""
        return self.xy / self.xx if self.freedom >= EVIDENCE and self.xx > 0 else 0.0

    def update(self, scores: Sequence[float | None], rewards: Sequence[float | None]) -> Slope:
        """Add one group: scores and rewards of its kept rollouts, in order; None where one is missing."""
        if len(scores) != len(rewards):
            raise ValueError(
                f"{len(scores)} scores and {len(rewards)} rewards; give one of each for every kept rollout"
            )
        pairs = [(x, y) for x, y in zip(scores, rewards, strict=True) if x is not None and y is not None]
        if len(pairs) < 2:
            return self
        if not all(math.isfinite(number) for pair in pairs for number in pair):
            raise ValueError(f"a score or reward is not finite: {pairs}; give None for a missing one")
        x_mean = math.fsum(x for x, _ in pairs) / len(pairs)
        y_mean = math.fsum(y for _, y in pairs) / len(pairs)
        return Slope(
            MEMORY * self.xy + math.fsum((x - x_mean) * (y - y_mean) for x, y in pairs),
            MEMORY * self.xx + math.fsum((x - x_mean) ** 2 for x, _ in pairs),
            MEMORY * self.freedom + len(pairs) - 1,
        )


def population_baseline(slope: Slope, kept: Sequence[float | None], drawn: Sequence[float | None]) -> float:
    """Return the shift from the kept rollouts' mean reward to an estimate of all previews' mean reward.

        b = mean(R kept) - slope * (mean(R~ kept) - mean(R~ all drawn))

    kept   surrogate scores of the rollouts that have a reward, None where one is missing
    drawn  surrogate scores of every preview, rejected ones included

    Returns 0 when either has no score. Use the slope of earlier groups and update it afterwards: a baseline fitted to
    the rewards that it is subtracted from would bias the gradient.
    """
    kept_mean, drawn_mean = _mean(kept), _mean(drawn)
    return 0.0 if kept_mean is None or drawn_mean is None else -slope.value * (kept_mean - drawn_mean)


def _mean(scores: Sequence[float | None]) -> float | None:
    measured = [score for score in scores if score is not None]
    return math.fsum(measured) / len(measured) if measured else None


def _check_group(valid_G: Tensor) -> None:
    if valid_G.dtype != torch.bool or valid_G.dim() != 1:
        raise ValueError(f"valid_G is {valid_G.dtype} {list(valid_G.shape)}; give one bool for each rollout")
