"""One update of the policy from scored groups by Sync-GRPO's loss (Sync-R1, eq. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from trainer.algorithms.advantage import Slope, population_baseline, step_advantages
from trainer.algorithms.aggregate import GroupRewards, is_flat
from trainer.algorithms.losses import LossStats, clipped_loss, decision_weight
from trainer.errors import NonFinite
from trainer.optim import set_learning_rates
from trainer.policy.base import Policy
from trainer.rollout import ScoredGroup
from trainer.settings import LossSettings, TrainerSettings
from trainer.types import Modality, Rollout

MIN_REWARDS = 2  # a group with fewer is skipped: one reward equals its own mean
MAX_GRAD_NORM = 1.0  # the paper's


@dataclass(frozen=True, slots=True)
class Update:
    """Figures of one update.

    losses   sums over groups
    stats    over the decisions of each modality
    skipped  groups with fewer than MIN_REWARDS rewards; `grad_norm` and `advantage_abs` are None if all were
    flat     groups with equal rewards only, which teach nothing
    """

    losses: dict[Modality, float]
    stats: dict[Modality, LossStats]
    grad_norm: float | None
    advantage_abs: float | None
    skipped: int
    flat: int


def update_reward_slope(slope: Slope, groups: Sequence[ScoredGroup]) -> Slope:
    """Return the running slope of reward on surrogate score, updated with these groups."""
    for group in groups:
        slope = slope.update(_kept_scores(group), [reward.value for reward in group.rewards])
    return slope


def policy_update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[ScoredGroup],
    slope: Slope,
    settings: TrainerSettings,
    step: int,
) -> Update:
    """Accumulate the gradients of all groups, clip their norm, and take one optimizer step.

    Takes no step if every group is skipped. Raises NonFinite before parameters or optimizer change.
    """
    losses: dict[Modality, float] = {"text": 0.0, "image": 0.0}
    stats: dict[Modality, LossStats] = {"text": LossStats(), "image": LossStats()}
    optimizer.zero_grad(set_to_none=True)
    rewards = [GroupRewards.of(group.rewards, group.previews.task.reward) for group in groups]
    usable = [i for i, found in enumerate(rewards) if int(found.valid_G.sum()) >= MIN_REWARDS]
    flat = sum(is_flat(found, settings.rewards.aggregation) for found in rewards)
    advantages = _advantages([groups[i] for i in usable], [rewards[i] for i in usable], slope, settings)
    for i, advantage in zip(usable, advantages, strict=True):
        rewarded = zip(groups[i].rollouts, rewards[i].valid_G.tolist(), strict=True)
        chosen = [rollout for rollout, valid in rewarded if valid]
        for modality in losses:
            rng = np.random.default_rng([settings.seed, step, i])
            loss, found = _backward(policy, chosen, advantage, modality, settings.loss, len(usable), rng)
            if not np.isfinite(loss):
                prompt = groups[i].previews.task.prompt.text
                raise NonFinite(f"the {modality} loss is {loss} for prompt {prompt!r}", i)
            losses[modality] += loss
            stats[modality] += found
    if not usable:
        return Update(losses, stats, None, None, len(groups), flat)
    norm = float(nn.utils.clip_grad_norm_(policy.module.parameters(), MAX_GRAD_NORM))
    if not np.isfinite(norm):
        raise NonFinite(f"the gradient's norm is {norm}", None)
    set_learning_rates(optimizer, settings.optimizer, step, settings.steps)
    optimizer.step()
    spread = float(np.mean([float(advantage.abs().mean()) for advantage in advantages]))
    return Update(losses, stats, norm, spread, len(groups) - len(usable), flat)


def _backward(
    policy: Policy,
    rollouts: Sequence[Rollout],
    advantage: torch.Tensor,
    modality: Modality,
    settings: LossSettings,
    groups: int,
    rng: np.random.Generator,
) -> tuple[float, LossStats]:
    """Add the gradient of one modality of a group, one sampling step and micro-batch at a time to save memory."""
    found = [(s, i) for i, rollout in enumerate(rollouts) for s in rollout.segments if s.kind == modality]
    value, stats = 0.0, LossStats()
    if not found:
        return value, stats
    chosen = settings.text if modality == "text" else settings.image
    total = policy.steps([segment for segment, _ in found])
    count = max(1, round(settings.loss_step_fraction * total))
    weight = decision_weight(chosen.alpha, settings.scale, policy.decisions(modality)) * total / count / groups
    size = settings.micro_batch or len(found)
    for step in sorted(rng.choice(total, count, replace=False).tolist()):
        for first in range(0, len(found), size):
            segments, owners = zip(*found[first : first + size], strict=True)
            terms = policy.terms(segments, step, reference=chosen.beta > 0)
            loss, figures = clipped_loss(
                terms.new_BD,
                terms.old_BD,
                terms.reference_BD,
                terms.mask_BD,
                advantage[list(owners)].to(terms.new_BD.device),
                clip=chosen.clip,
                beta=chosen.beta,
                weight=weight,
                group_size=len(rollouts),
                kl_BD=terms.kl_BD,
            )
            loss.backward()  # type: ignore[no-untyped-call]
            value, stats = value + float(loss.detach()), stats + figures
    return value, stats


def _advantages(
    groups: Sequence[ScoredGroup], rewards: Sequence[GroupRewards], slope: Slope, settings: TrainerSettings
) -> list[torch.Tensor]:
    """Return for each group the advantages of the rollouts that have a reward, in order."""
    shifts = None
    if settings.loss.baseline == "population":
        shifts = [_shift(group, found, slope) for group, found in zip(groups, rewards, strict=True)]
    found = step_advantages(
        rewards, aggregation=settings.rewards.aggregation, normalise=settings.loss.normalise, shifts=shifts
    )
    return [advantage_G[one.valid_G] for advantage_G, one in zip(found, rewards, strict=True)]


def _shift(group: ScoredGroup, rewards: GroupRewards, slope: Slope) -> float:
    measured = [s for s, valid in zip(_kept_scores(group), rewards.valid_G.tolist(), strict=True) if valid]
    return population_baseline(slope, measured, group.previews.scores)


def _kept_scores(group: ScoredGroup) -> list[float | None]:
    return [group.previews.scores[i] for i in group.previews.screened.indices]
