"""The clipped objective of GRPO (Sync-R1, eqs. 2, 9, 10; UniRL-Zero, eqs. 2, 3) over one modality's decisions. Pure.

Suffixes: B rollouts of a group, D decisions of one denoising step (image positions) or of one text (tokens).

Deviations, each with its reason:

* Positions. Eq. 1 scores every image position at every step. At committed positions no token was sampled, so they do
  not belong in a likelihood ratio, and the model was never trained there; they are 35 % of 50 x 1024 terms. mask_BD
  selects the sampled ones. Which positions are re-masked (confidence + Gumbel noise) also depends on the policy; it is
  treated as part of the environment.
* Scale. Eq. 9 sums, so 5e4 image terms outweigh some 50 text terms. `decision_weight` divides each modality by a
  constant rather than by its own length, which avoids length bias as in Dr.GRPO; "paper_sum" is the paper's form, and
  "own_length" UniRL-Zero's, the mean over a rollout's own tokens or sampling steps.
* KL. Eq. 9 has it inside the weighted sum, eq. 11 outside; we follow eq. 9. The estimator is k3. Its mean under pi is
  KL(pi || ref), but the mean of its gradient is that of KL(ref || pi), as in every loss that uses k3.
* Steps of a flow. d log p / d velocity is proportional to a step's `sensitivity`, which is 25 times as large at the end
  of a schedule as at its start, so the likelihood trains details first. Log-ratios divided by it weigh steps equally.
* Log-ratios are clamped to [-10, 10], as in the authors' code: beyond that a term is flat instead of overflowing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["per_modality_constant", "paper_sum", "own_length"]
LOG_RATIO = 10.0


@dataclass(frozen=True, slots=True)
class LossStats:
    """Sums over decisions, which add up over steps and batches with `+`.

    clipped    decisions whose ratio left [1 - clip, 1 + clip] on the side where the objective is flat
    low, high  smallest and largest ratio
    kl_sum     sum of the KL terms, in nats; 0 without a reference
    steps      (decisions, kl_sum) of each sampling step that `at` has named, from step 0; () if none was

    Without decisions the properties are None.
    """

    decisions: int = 0
    clipped: int = 0
    low: float = math.inf
    high: float = -math.inf
    kl_sum: float = 0.0
    steps: Sequence[tuple[int, float]] = ()

    def __add__(self, other: LossStats) -> LossStats:
        pairs = zip_longest(self.steps, other.steps, fillvalue=(0, 0.0))
        return LossStats(
            self.decisions + other.decisions,
            self.clipped + other.clipped,
            min(self.low, other.low),
            max(self.high, other.high),
            self.kl_sum + other.kl_sum,
            tuple((mine[0] + theirs[0], mine[1] + theirs[1]) for mine, theirs in pairs),
        )

    def at(self, step: int, count: int) -> LossStats:
        """Return the figures of decisions that all belong to this one of `count` sampling steps."""
        own, none = (self.decisions, self.kl_sum), (0, 0.0)
        return replace(self, steps=tuple(own if place == step else none for place in range(count)))

    @property
    def ratio_min(self) -> float | None:
        return self.low if self.decisions else None

    @property
    def ratio_max(self) -> float | None:
        return self.high if self.decisions else None

    @property
    def clip_fraction(self) -> float | None:
        return self.clipped / self.decisions if self.decisions else None

    @property
    def kl(self) -> float | None:
        return self.kl_sum / self.decisions if self.decisions else None

    @property
    def kl_by_step(self) -> list[float | None]:
        """The mean KL of each sampling step, from step 0; None for a step without decisions here."""
        return [kl_sum / decisions if decisions else None for decisions, kl_sum in self.steps]


def clipped_loss(
    new_BD: Tensor,
    old_BD: Tensor,
    ref_BD: Tensor | None,
    mask_BD: Tensor,
    advantage_B: Tensor,
    *,
    clip: float,
    beta: float,
    weight: float,
    group_size: int | None = None,
    kl_BD: Tensor | None = None,
    own_length: bool = False,
    sensitivity: float = 1.0,
) -> tuple[Tensor, LossStats]:
    """Compute eq. 9, negated to be minimised: the scalar loss with new_BD's gradient, and its figures.

        -(1/group_size) sum_i sum_j weight * (min(D_ij A_i, clip(D_ij, 1-clip, 1+clip) A_i) - beta k3_ij)
        D = exp((new - old) / sensitivity),    k3 = exp(d) - d - 1,    d = ref - new

    new, old, ref  log-probabilities (<= 0) under the policy, the policy that sampled, and the reference, summed in
                   float32 or better; only `new` has a gradient. ref_BD None: no KL term, for beta = 0
    mask_BD        bool; a False decision adds exactly 0 to loss and gradient, even if it holds -inf or NaN
    kl_BD          KL(policy || reference) of each decision in closed form, with its gradient, in place of k3
    advantage_B    of each rollout; leave out rollouts without a reward, because their KL would still count
    group_size     the divisor, B by default; for a group in several batches give the size of the whole group, so that
                   the batches' losses add up to the group's
    own_length     divide each rollout's sum by its number of decisions here; a rollout without any adds 0
    sensitivity    of a flow's step, 1 for the likelihood itself; KL terms do not change

    Raises ValueError for shapes that do not fit, a mask that is not bool, or a clip, beta or sensitivity out of range.
    """
    _check(new_BD, old_BD, ref_BD if kl_BD is None else kl_BD, mask_BD, advantage_B, clip, beta)
    if not sensitivity > 0:
        raise ValueError(f"sensitivity is {sensitivity}; give a positive number, 1 for the likelihood itself")
    rollouts = len(new_BD) if group_size is None else group_size
    if rollouts < 1:
        raise ValueError(f"the loss is divided by {rollouts} rollouts; give at least one, or skip the group")
    dtype = torch.promote_types(new_BD.dtype, torch.float32)
    new_BD = torch.where(mask_BD, new_BD.to(dtype), 0.0)  # first: in the backward pass 0 * inf is NaN
    old_BD = torch.where(mask_BD, old_BD.detach().to(dtype), 0.0)
    advantage_B1 = advantage_B.detach().to(dtype)[:, None]
    ratio_BD = ((new_BD - old_BD) / sensitivity).clamp(-LOG_RATIO, LOG_RATIO).exp()
    gain_BD = torch.minimum(ratio_BD * advantage_B1, ratio_BD.clamp(1 - clip, 1 + clip) * advantage_B1)
    if kl_BD is not None:
        divergence_BD = torch.where(mask_BD, kl_BD.to(dtype), 0.0)
        gain_BD = gain_BD - beta * divergence_BD
    elif ref_BD is not None:
        ref_BD = torch.where(mask_BD, ref_BD.detach().to(dtype), 0.0)
        d_BD = (ref_BD - new_BD).clamp(-LOG_RATIO, LOG_RATIO)
        divergence_BD = d_BD.expm1() - d_BD  # k3 is second order in d: exp(d) - 1 would round it to 0
        gain_BD = gain_BD - beta * divergence_BD
    else:
        divergence_BD = torch.zeros_like(gain_BD)
    gain_BD = torch.where(mask_BD, gain_BD, 0.0)
    if own_length:
        gain_BD = gain_BD / mask_BD.sum(1, keepdim=True).clamp(min=1)
    loss = -weight * gain_BD.sum() / rollouts
    flat_BD = ((advantage_B1 > 0) & (ratio_BD > 1 + clip)) | ((advantage_B1 < 0) & (ratio_BD < 1 - clip))
    return loss, _stats(ratio_BD.detach(), divergence_BD.detach(), flat_BD, mask_BD)


def decision_weight(alpha: float, scale: Scale, decisions: int, steps: int) -> float:
    """Return alpha_j of eq. 10, for each decision of a modality.

    "paper_sum": alpha itself. "per_modality_constant": alpha divided by the largest number of `decisions` that one
    segment can have, which does not depend on the length of a rollout. "own_length": alpha divided by the number of
    sampling `steps` of a segment, for `clipped_loss` to divide by the decisions of each step.
    """
    return alpha / {"paper_sum": 1, "per_modality_constant": decisions, "own_length": steps}[scale]


def _stats(ratio_BD: Tensor, kl_BD: Tensor, flat_BD: Tensor, mask_BD: Tensor) -> LossStats:
    ratio, kl = ratio_BD[mask_BD], kl_BD[mask_BD]
    if not len(ratio):
        return LossStats()
    sums = torch.stack([flat_BD[mask_BD].sum().to(ratio.dtype), ratio.min(), ratio.max(), kl.sum()])
    flat, low, high, kl_sum = sums.tolist()  # one transfer from the device
    return LossStats(len(ratio), int(flat), low, high, kl_sum)


def _check(
    new_BD: Tensor,
    old_BD: Tensor,
    ref_BD: Tensor | None,
    mask_BD: Tensor,
    advantage_B: Tensor,
    clip: float,
    beta: float,
) -> None:
    shapes = [list(x.shape) for x in (new_BD, old_BD, mask_BD, ref_BD) if x is not None]
    if any(shape != shapes[0] for shape in shapes) or new_BD.dim() != 2 or advantage_B.shape != new_BD.shape[:1]:
        raise ValueError(
            f"log-probabilities and mask are {shapes}, advantages {list(advantage_B.shape)}; give [B D] and [B]"
        )
    if mask_BD.dtype != torch.bool:
        raise ValueError(f"mask_BD is {mask_BD.dtype}; give bool, True where a token was sampled")
    if not 0 < clip < 1:
        raise ValueError(f"clip is {clip}; give a number between 0 and 1, both excluded (the usual one is .2)")
    if beta < 0 or (beta > 0 and ref_BD is None):
        raise ValueError(f"beta is {beta}, which weighs a KL to the reference; give ref_BD or kl_BD, or beta 0")
