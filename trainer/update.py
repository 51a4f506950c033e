"""One update of the policy from scored groups by Sync-GRPO's loss (Sync-R1, eq. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from trainer.algorithms.advantage import Slope, advantages, population_baseline
from trainer.algorithms.losses import LossStats, clipped_loss, modality_weights
from trainer.errors import NonFinite
from trainer.optim import lr_factor
from trainer.policy.base import Policy
from trainer.rollout import Group
from trainer.settings import LossSettings, TrainerSettings
from trainer.types import Modality, Reward, Rollout, Segment

CLIP = 0.2  # epsilon of eq. 9
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


def update_reward_slope(slope: Slope, groups: Sequence[Group], rewards: Sequence[Sequence[Reward]]) -> Slope:
    """Return the running slope of reward on surrogate score, updated with these groups."""
    for group, found in zip(groups, rewards, strict=True):
        slope = slope.update(_kept_scores(group), [reward.value for reward in found])
    return slope


def policy_update(
    policy: Policy,
    reference: Policy | None,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Group],
    rewards: Sequence[Sequence[Reward]],
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
    usable = [i for i, found in enumerate(rewards) if int(_valid(found).sum()) >= MIN_REWARDS]
    for i in usable:
        advantage = _advantage(groups[i], rewards[i], slope, settings.loss)
        spread.append(float(advantage.abs().mean()))
        chosen = [r for r, reward in zip(groups[i].rollouts, rewards[i], strict=True) if reward.value is not None]
        for modality, segments in _segments(chosen).items():
            rng = np.random.default_rng([settings.seed, step, i])
            loss, found = _backward(policy, reference, segments, advantage, modality, settings, len(usable), rng)
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
    reference: Policy | None,
    segments: Sequence[Segment],
    advantage: torch.Tensor,
    modality: Modality,
    settings: TrainerSettings,
    groups: int,
    rng: np.random.Generator,
) -> tuple[float, LossStats]:
    """Add the gradient of one group's segments, one denoising step at a time to save memory."""
    total = policy.steps(segments)
    count = max(1, round(settings.loss.loss_step_fraction * total))
    weights = modality_weights(
        settings.loss.alpha_text,
        settings.loss.alpha_image,
        settings.loss.scale,
        max_text_tokens=settings.sampler.max_new_tokens,
        denoising_steps=settings.sampler.denoising_steps,
        positions=policy.positions,
    )
    weight = weights[modality] * total / count / groups
    value, stats = 0.0, LossStats()
    for step in sorted(rng.choice(total, count, replace=False).tolist()):
        new, old, mask = policy.logprobs(segments, step)
        if modality == "image" and settings.loss.positions == "all":
            mask = torch.ones_like(mask)
        with torch.no_grad():
            ref = reference.logprobs(segments, step)[0] if reference is not None else None
        beta = settings.loss.beta if reference is not None else 0.0
        loss, found = clipped_loss(new, old, ref, mask, advantage.to(new.device), clip=CLIP, beta=beta, weight=weight)
        loss.backward()  # type: ignore[no-untyped-call]
        value, stats = value + float(loss.detach()), stats + found
    return value, stats


def _advantage(group: Group, rewards: Sequence[Reward], slope: Slope, settings: LossSettings) -> torch.Tensor:
    """Return the advantages of the rollouts that have a reward, in order."""
    valid = _valid(rewards)
    values = torch.tensor([0.0 if reward.value is None else reward.value for reward in rewards])
    shift = 0.0
    if settings.baseline == "population":
        measured = [s for s, reward in zip(_kept_scores(group), rewards, strict=True) if reward.value is not None]
        shift = population_baseline(slope, measured, group.previews.scores)
    return advantages(values, valid, baseline_shift=shift)[valid]


def _valid(rewards: Sequence[Reward]) -> torch.Tensor:
    return torch.tensor([reward.value is not None for reward in rewards])


def _kept_scores(group: Group) -> list[float | None]:
    return [group.previews.scores[i] for i in group.previews.screened.indices]


def _segments(rollouts: Sequence[Rollout]) -> dict[Modality, list[Segment]]:
    texts: list[Segment] = [r.text for r in rollouts if r.text is not None]
    images: list[Segment] = [r.image for r in rollouts]
    return {"text": texts, "image": images} if texts else {"image": images}
