"""One update of the policy from scored groups by Sync-GRPO's loss (Sync-R1, eq. 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

from trainer.algorithms.losses import LossStats, clipped_loss, decision_weight
from trainer.credit import Slopes, modality_advantages, rewarded
from trainer.distributed import ONE_RANK, Ranks
from trainer.errors import NonFinite
from trainer.optim import learning_rates
from trainer.policy.base import Policy
from trainer.rollout import ScoredGroup
from trainer.settings import LossSettings, TrainerSettings
from trainer.types import MODALITIES, Modality, Rollout

MIN_REWARDS = 2  # a group with fewer is skipped: one reward equals its own mean
MAX_GRAD_NORM = 1.0  # the paper's


@dataclass(frozen=True, slots=True)
class Update:
    """Figures of one update.

    losses         sums over groups
    stats          over the decisions of each modality
    grad_norm      of the gradient before it is clipped; None if all groups were skipped
    advantage_abs  mean |advantage| of each modality's decisions; None if all groups were skipped
    skipped        groups with fewer than MIN_REWARDS rewards
    flat           groups whose rewards are all equal, which have no signal
    """

    losses: dict[Modality, float]
    stats: dict[Modality, LossStats]
    grad_norm: float | None
    advantage_abs: dict[Modality, float | None]
    skipped: int
    flat: int


def policy_update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[ScoredGroup],
    slopes: Slopes,
    settings: TrainerSettings,
    step: int,
    ranks: Ranks = ONE_RANK,
) -> Update:
    """Accumulate the gradients of all groups over all ranks, clip their norm, and take one optimizer step.

    Each rank computes the gradients of the groups that it drew. The sum, and so the step, is the same on every rank.
    Takes no step if every group is skipped. Raises NonFinite, or OtherRankFailed on the other ranks, before parameters
    or optimizer change.
    """
    optimizer.zero_grad(set_to_none=True)
    usable = [i for i, group in enumerate(groups) if len(rewarded(group)) >= MIN_REWARDS]
    found = modality_advantages([groups[i] for i in usable], slopes, settings.loss)
    advantages = {modality: dict(zip(usable, found[modality], strict=True)) for modality in MODALITIES}
    with ranks.together():
        own = _accumulate(policy, groups, usable, advantages, settings, step)
    losses, stats = _totals(own, ranks)
    if not usable:
        return Update(losses, stats, None, dict.fromkeys(MODALITIES), len(groups), 0)
    ranks.sum_gradients(policy.module.parameters())
    norm = float(nn.utils.clip_grad_norm_(policy.module.parameters(), MAX_GRAD_NORM))
    if not np.isfinite(norm):
        raise NonFinite(f"the gradient's norm is {norm}", None)
    for parameters, lr in zip(optimizer.param_groups, learning_rates(policy, settings, step), strict=True):
        parameters["lr"] = lr
    optimizer.step()
    spread: dict[Modality, float | None] = {
        modality: float(np.mean([float(one.abs().mean()) for one in advantages[modality].values()]))
        for modality in MODALITIES
    }
    flat = sum(groups[i].is_flat for i in usable)
    return Update(losses, stats, norm, spread, len(groups) - len(usable), flat)


def _accumulate(
    policy: Policy,
    groups: Sequence[ScoredGroup],
    usable: Sequence[int],
    advantages: Mapping[Modality, Mapping[int, torch.Tensor]],
    settings: TrainerSettings,
    step: int,
) -> list[tuple[int, Modality, float, LossStats]]:
    """Add the gradients of this rank's groups; return (group, modality, loss, stats) of each."""
    found = []
    for i in usable:
        if not groups[i].is_ours:
            continue
        chosen = [groups[i].rollouts[place] for place in rewarded(groups[i])]
        for modality in MODALITIES:
            advantage = advantages[modality][i]
            rng = np.random.default_rng([settings.seed, step, i])
            loss, stats = _backward(policy, chosen, advantage, modality, settings.loss, len(usable), rng)
            if not np.isfinite(loss):
                prompt = groups[i].previews.task.prompt.text
                raise NonFinite(f"the {modality} loss is {loss} for prompt {prompt!r}", i)
            found.append((i, modality, loss, stats))
    return found


def _totals(
    found: Sequence[tuple[int, Modality, float, LossStats]], ranks: Ranks
) -> tuple[dict[Modality, float], dict[Modality, LossStats]]:
    """Return the losses and figures of all ranks, added in the order of the groups."""
    losses, stats = dict.fromkeys(MODALITIES, 0.0), dict.fromkeys(MODALITIES, LossStats())
    documents = ranks.gather_all([(i, modality, loss, asdict(one)) for i, modality, loss, one in found])
    for _, modality, loss, one in sorted((d for part in documents for d in part), key=lambda d: d[0]):
        losses[modality] += loss
        stats[modality] += LossStats(**one)
    return losses, stats


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
    chosen = settings.of(modality)
    total = policy.steps([segment for segment, _ in found])
    count = max(1, round(settings.loss_step_fraction * total))
    weight = decision_weight(chosen.alpha, settings.scale, policy.decisions(modality)) * total / count / groups
    size = settings.micro_batch or len(found)
    with policy.sharing([segment for segment, _ in found]):
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
