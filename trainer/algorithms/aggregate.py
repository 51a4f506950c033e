"""Combine the rewards of several scorers: a weighted sum, or GDPO's normalisation first. Pure.

Suffixes: G the rollouts of one group, V those with every score, K scorers.

"sum" is sum_k w_k R_k. "gdpo" (GDPO, arXiv 2601.05242) normalises each reward within its group before the sum, so that
a reward with a large spread does not drown the others, and then divides by the standard deviation over the whole step
(`trainer.algorithms.advantage.step_advantages`). Both equal trl's `multi_objective_aggregation` except for:

* Missing scores. trl leaves a missing score out of the sum (nansum), as if it were the group's mean. Here a rollout
  without one of its scores is masked.
* Epsilon. trl divides by (std + 1e-4), which damps rewards with a small range and amplifies rounding errors of those
  with a large one. Here the standard deviation divides as it is, and values without spread (`Moments.has_spread`)
  become exactly 0. `epsilon` = 1e-4 gives trl's form.

Standard deviations are the unbiased ones (divided by n - 1), as in trl.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.types import Aggregation, Reward, RewardSpec

FLAT = 1e-5  # of the magnitude: above a float32 scorer's differences between batches (about 1e-6)


@dataclass(frozen=True, slots=True, eq=False)
class GroupRewards:
    """The scores of one group's rollouts.

    value_GK  raw scores, floats; a masked row may hold anything
    valid_G   bool, False where a rollout lacks a score
    weight_K  the weight of each scorer; negative ones are allowed

    Raises ValueError for shapes that do not fit, a valid score that is not finite, and weights that are not finite or
    all 0.
    """

    value_GK: Tensor
    valid_G: Tensor
    weight_K: tuple[float, ...]

    def __post_init__(self) -> None:
        check_weights(self.weight_K)
        if self.valid_G.dtype != torch.bool or self.valid_G.dim() != 1:
            raise ValueError(
                f"valid_G is {self.valid_G.dtype} {list(self.valid_G.shape)}; give one bool for each rollout"
            )
        if self.value_GK.shape != (len(self.valid_G), len(self.weight_K)) or not self.value_GK.is_floating_point():
            raise ValueError(
                f"value_GK is {self.value_GK.dtype} {list(self.value_GK.shape)}; give floats "
                f"[{len(self.valid_G)}, {len(self.weight_K)}], one for each rollout and weight"
            )
        if not bool(torch.isfinite(self.complete).all()):
            raise ValueError(f"a valid score is not finite: {self.complete.tolist()}; mask missing scores")

    @classmethod
    def of(cls, rewards: Sequence[Reward], spec: RewardSpec) -> GroupRewards:
        """Return the rewards of one group, float32: for "gdpo" the scorers with a weight, else the rewards themselves.

        A rollout without a reward, or without one of those scorers, is masked.
        """
        weights = {name: weight for name, weight in spec.scorers.items() if weight}
        if spec.aggregation == "sum" or not weights:
            rows, weights = [[reward.value] for reward in rewards], {"reward": 1.0}
        else:
            rows = [[None if r.value is None else r.components.get(name) for name in weights] for r in rewards]
        complete = [all(value is not None for value in row) for row in rows]
        filled = [[math.nan if value is None else value for value in row] for row in rows]
        value_GK = torch.tensor(filled, dtype=torch.float32).reshape(len(rows), len(weights))
        return cls(value_GK, torch.tensor(complete, dtype=torch.bool), tuple(weights.values()))

    @property
    def complete(self) -> Tensor:
        """The scores [V K] of the rollouts that have all of them."""
        return self.value_GK[self.valid_G]

    def terms(self, aggregation: Aggregation, epsilon: float | None = None) -> Tensor:
        """Return the terms [V K] whose sum over K is a rollout's reward: w R, or w (R - mean) / std for "gdpo"."""
        value_VK = self.complete
        if aggregation == "gdpo":
            columns = [_normalised(value_V, epsilon) for value_V in value_VK.double().unbind(1)]
            value_VK = torch.stack(columns, 1)
        return value_VK * torch.tensor(self.weight_K, dtype=value_VK.dtype)


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over values that are sums of terms; they add up over groups with `+`.

    count, total, squares  the number of values, their sum and the sum of their squares
    magnitude              the sum of the squares of all terms: values far below it are rounding errors
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    magnitude: float = 0.0

    @classmethod
    def of(cls, term_VK: Tensor) -> Moments:
        """Return the sums over the values term_VK.sum(1), in float64."""
        term_VK = term_VK.double()
        value_V = term_VK.sum(1)
        return cls(len(value_V), float(value_V.sum()), float(value_V.square().sum()), float(term_VK.square().sum()))

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            self.magnitude + other.magnitude,
        )

    @property
    def std(self) -> float:
        """The unbiased standard deviation; 0 below two values."""
        if self.count < 2:
            return 0.0
        return math.sqrt(max(0.0, self.squares - self.total**2 / self.count) / (self.count - 1))

    @property
    def has_spread(self) -> bool:
        """Whether the standard deviation exceeds FLAT times the root mean square of the terms."""
        return self.count >= 2 and self.std > FLAT * math.sqrt(self.magnitude / self.count)

    def divisor(self, epsilon: float | None = None) -> float:
        """Return what normalised values are divided by: std, or std + epsilon; infinity without spread."""
        if epsilon is not None:
            return self.std + epsilon
        return self.std if self.has_spread else math.inf


def is_flat(group: GroupRewards, aggregation: Aggregation) -> bool:
    """Return whether a group has two rewards or more and all are equal, so that it has no signal.

    A group with fewer rewards is not flat but unknown.
    """
    moments = Moments.of(group.terms(aggregation))
    return moments.count >= 2 and not moments.has_spread


def without_fixed(rewards: Sequence[Reward], spec: RewardSpec) -> tuple[list[Reward], RewardSpec]:
    """Return a group's rewards without the terms that were fixed before the images were drawn, and their spec.

    "sum" subtracts the terms, "gdpo" gives their scorers a weight of 0. If the terms of one reward are not known, the
    group's rewards are returned as they are: a term that is left out of some rewards only would look like a difference
    between images.
    """
    valued = [reward for reward in rewards if reward.value is not None]
    names = {name for reward in valued for name in reward.fixed or ()}
    if not names or any(reward.fixed is None for reward in valued):
        return list(rewards), spec
    if spec.aggregation == "gdpo":
        spec = replace(spec, scorers={name: 0.0 if name in names else w for name, w in spec.scorers.items()})
    return [_without_fixed(reward) for reward in rewards], spec


def _without_fixed(reward: Reward) -> Reward:
    if reward.value is None:
        return reward
    return replace(reward, value=reward.image_part, fixed={})


def check_weights(weights: Sequence[float]) -> None:
    """Raise ValueError for weights that are not finite, or all 0."""
    if not all(math.isfinite(weight) for weight in weights) or not any(weights):
        raise ValueError(f"the weights are {list(weights)}; give finite numbers, at least one of them not 0")


def _normalised(value_V: Tensor, epsilon: float | None) -> Tensor:
    """Return (R - mean) / std of one scorer's values, float64."""
    return (value_V - value_V.mean()) / Moments.of(value_V[:, None]).divisor(epsilon)
