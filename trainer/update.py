"""One update of the policy from scored groups by Sync-GRPO's loss (Sync-R1, eq. 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

from trainer.algorithms.advantage import Slope, population_baseline, step_advantages
from trainer.algorithms.aggregate import GroupRewards
from trainer.algorithms.losses import LossStats, clipped_loss, decision_weight
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

    losses   sums over groups
    stats    over the decisions of each modality
    skipped  groups with fewer than MIN_REWARDS rewards; `grad_norm` and `advantage_abs` are None if all were
    flat     groups whose rewards are all equal, which have no signal
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
    ranks: Ranks = ONE_RANK,
) -> Update:
    """Accumulate the gradients of all groups over all ranks, clip their norm, and take one optimizer step.

    Each rank computes the gradients of the groups that it drew. The sum, and so the step, is the same on every rank.
    Takes no step if every group is skipped. Raises NonFinite, or OtherRankFailed on the other ranks, before parameters
    or optimizer change.
    """
    optimizer.zero_grad(set_to_none=True)
    usable = [i for i, group in enumerate(groups) if len(_rewarded(group)) >= MIN_REWARDS]
    advantages = dict(zip(usable, _advantages([groups[i] for i in usable], slope, settings.loss), strict=True))
    with ranks.together():
        own = _accumulate(policy, groups, advantages, settings, step)
    losses, stats = _totals(own, ranks)
    if not usable:
        return Update(losses, stats, None, None, len(groups), 0)
    ranks.sum_gradients(policy.module.parameters())
    norm = float(nn.utils.clip_grad_norm_(policy.module.parameters(), MAX_GRAD_NORM))
    if not np.isfinite(norm):
        raise NonFinite(f"the gradient's norm is {norm}", None)
    for parameters, lr in zip(optimizer.param_groups, learning_rates(policy, settings, step), strict=True):
        parameters["lr"] = lr
    optimizer.step()
    spread = float(np.mean([float(advantages[i].abs().mean()) for i in usable]))
    flat = sum(groups[i].is_flat for i in usable)
    return Update(losses, stats, norm, spread, len(groups) - len(usable), flat)


def _accumulate(
    policy: Policy,
    groups: Sequence[ScoredGroup],
    advantages: Mapping[int, torch.Tensor],
    settings: TrainerSettings,
    step: int,
) -> list[tuple[int, Modality, float, LossStats]]:
    """Add the gradients of this rank's groups; return (group, modality, loss, stats) of each."""
    found = []
    for i, advantage in advantages.items():
        if not groups[i].is_ours:
            continue
        chosen = [groups[i].rollouts[place] for place in _rewarded(groups[i])]
        for modality in MODALITIES:
            rng = np.random.default_rng([settings.seed, step, i])
            loss, stats = _backward(policy, chosen, advantage, modality, settings.loss, len(advantages), rng)
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


def _advantages(groups: Sequence[ScoredGroup], slope: Slope, settings: LossSettings) -> list[torch.Tensor]:
    """Return the advantages of each group's rollouts that have a reward, in order."""
    found: dict[int, torch.Tensor] = {}
    by_aggregation = {group.previews.task.reward.aggregation for group in groups}
    for aggregation in sorted(by_aggregation):
        places = [i for i, group in enumerate(groups) if group.previews.task.reward.aggregation == aggregation]
        rewards = [GroupRewards.of(groups[i].rewards, groups[i].previews.task.reward) for i in places]
        shifts = [_baseline_shift(groups[i], slope, settings) for i in places]
        advantages = step_advantages(rewards, aggregation=aggregation, normalise=settings.normalise, shifts=shifts)
        found |= {i: a[r.valid_G] for i, a, r in zip(places, advantages, rewards, strict=True)}
    return [found[i] for i in range(len(groups))]


def _baseline_shift(group: ScoredGroup, slope: Slope, settings: LossSettings) -> float:
    if settings.baseline == "group":
        return 0.0
    kept = _kept_scores(group)
    return population_baseline(slope, [kept[place] for place in _rewarded(group)], group.previews.scores)


def _rewarded(group: ScoredGroup) -> list[int]:
    return [place for place, reward in enumerate(group.rewards) if reward.value is not None]


def _kept_scores(group: ScoredGroup) -> list[float | None]:
    return [group.previews.scores[i] for i in group.previews.screened.indices]
