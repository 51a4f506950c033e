"""One update of the policy from scored groups by Sync-GRPO's loss (Sync-R1, eq. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from trainer.algorithms.advantage import Slope, advantages, population_baseline
from trainer.algorithms.losses import LossStats, clipped_loss, decision_weight
from trainer.errors import NonFinite
from trainer.optim import lr_factor
from trainer.policy.base import Policy
from trainer.rollout import ScoredGroup
from trainer.settings import LossSettings, TrainerSettings
from trainer.types import Modality, Reward, Rollout

MIN_REWARDS = 2  # a group with fewer is skipped: one reward equals its own mean
MAX_GRAD_NORM = 1.0  # the paper's


@dataclass(frozen=True, slots=True)
class Update:
    """Figures of one update.

    losses   sums over groups
    stats    over the decisions of each modality
    skipped  groups with fewer than MIN_REWARDS rewards; `grad_norm` and `advantage_abs` are None if all were
    """

    losses: dict[Modality, float]
    stats: dict[Modality, LossStats]
    grad_norm: float | None
    advantage_abs: float | None
    skipped: int


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
    spread: list[float] = []
    optimizer.zero_grad(set_to_none=True)
    usable = [i for i, group in enumerate(groups) if int(_valid(group.rewards).sum()) >= MIN_REWARDS]
    for i in usable:
        advantage = _advantage(groups[i], slope, settings.loss)
        spread.append(float(advantage.abs().mean()))
        rewarded = zip(groups[i].rollouts, groups[i].rewards, strict=True)
        chosen = [rollout for rollout, reward in rewarded if reward.value is not None]
        for modality in losses:
            rng = np.random.default_rng([settings.seed, step, i])
            loss, found = _backward(policy, chosen, advantage, modality, settings.loss, len(usable), rng)
            if not np.isfinite(loss):
                prompt = groups[i].previews.task.prompt.text
                raise NonFinite(f"the {modality} loss is {loss} for prompt {prompt!r}", i)
            losses[modality] += loss
            stats[modality] += found
    if not usable:
        return Update(losses, stats, None, None, len(groups))
    norm = float(nn.utils.clip_grad_norm_(policy.module.parameters(), MAX_GRAD_NORM))
    if not np.isfinite(norm):
        raise NonFinite(f"the gradient's norm is {norm}", None)
    for parameters in optimizer.param_groups:
        parameters["lr"] = settings.optimizer.lr * lr_factor(settings.optimizer, step, settings.steps)
    optimizer.step()
    return Update(losses, stats, norm, float(np.mean(spread)), len(groups) - len(usable))


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


def _advantage(group: ScoredGroup, slope: Slope, settings: LossSettings) -> torch.Tensor:
    """Return the advantages of the rollouts that have a reward, in order."""
    valid = _valid(group.rewards)
    values = torch.tensor([0.0 if reward.value is None else reward.value for reward in group.rewards])
    shift = 0.0
    if settings.baseline == "population":
        measured = [s for s, reward in zip(_kept_scores(group), group.rewards, strict=True) if reward.value is not None]
        shift = population_baseline(slope, measured, group.previews.scores)
    return advantages(values, valid, baseline_shift=shift)[valid]


def _valid(rewards: Sequence[Reward]) -> torch.Tensor:
    return torch.tensor([reward.value is not None for reward in rewards])


def _kept_scores(group: ScoredGroup) -> list[float | None]:
    return [group.previews.scores[i] for i in group.previews.screened.indices]
