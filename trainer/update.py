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
from trainer.distributed import ONE_RANK, WHOLE, Ranks, Sharding, whole
from trainer.errors import NonFinite
from trainer.optim import learning_rates
from trainer.policy.base import Policy
from trainer.rollout import ScoredGroup
from trainer.settings import LossSettings, TrainerSettings
from trainer.settings.loss import ModalityLossSettings
from trainer.types import MODALITIES, Modality, Rollout, Segment

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
    sharding: Sharding = WHOLE,
) -> Update:
    """Accumulate the gradients of all groups over all ranks, clip their norm, and take one optimizer step.

    Each rank computes the gradients of the groups that it drew. The sum, and so the step, is the same on every rank.
    Takes no step if every group is skipped. Raises NonFinite, or OtherRankFailed on the other ranks, before parameters
    or optimizer change.
    """
    optimizer.zero_grad(set_to_none=True)
    usable = [i for i, group in enumerate(groups) if len(_rewarded(group)) >= MIN_REWARDS]
    if not usable:
        return Update(*_totals([], ONE_RANK), None, None, len(groups), 0)
    advantages = dict(zip(usable, _advantages([groups[i] for i in usable], slope, settings.loss), strict=True))
    with ranks.together():
        passes = _passes(policy, groups, advantages, settings, step)
    with sharding.split():
        run = _in_step if sharding.is_on else _accumulate
        losses, stats = _totals(run(policy, groups, passes, settings.loss, ranks), ranks)
        if not sharding.is_on:
            ranks.sum_gradients(policy.module.parameters())
        norm = float(whole(nn.utils.clip_grad_norm_(policy.module.parameters(), MAX_GRAD_NORM)))
        if not np.isfinite(norm):
            raise NonFinite(f"the gradient's norm is {norm}", None)
        for parameters, lr in zip(optimizer.param_groups, learning_rates(policy, settings, step), strict=True):
            parameters["lr"] = lr
        optimizer.step()
    spread = float(np.mean([float(advantages[i].abs().mean()) for i in usable]))
    flat = sum(groups[i].is_flat for i in usable)
    return Update(losses, stats, norm, spread, len(groups) - len(usable), flat)


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """A forward and a backward pass: segments of one modality of a group, at one of their sampling steps.

    advantage   of each segment's rollout
    weight      of a decision in the loss
    group_size  rollouts of the group that have a reward
    """

    segments: tuple[Segment, ...]
    step: int
    advantage: torch.Tensor
    weight: float
    group_size: int


Passes = Mapping[tuple[int, Modality], Sequence[_Pass]]  # of this rank, by group and modality
Found = list[tuple[int, Modality, float, LossStats]]  # (group, modality, loss, figures)


def _passes(
    policy: Policy,
    groups: Sequence[ScoredGroup],
    advantages: Mapping[int, torch.Tensor],
    settings: TrainerSettings,
    step: int,
) -> Passes:
    """Return the passes of the groups that this rank drew: one sampling step and micro-batch each, to save memory."""
    found = {}
    for i, advantage in advantages.items():
        if groups[i].is_ours:
            chosen = [groups[i].rollouts[place] for place in _rewarded(groups[i])]
            for modality in MODALITIES:
                rng = np.random.default_rng([settings.seed, step, i])
                found[i, modality] = _of_modality(
                    policy, chosen, advantage, modality, settings.loss, len(advantages), rng
                )
    return found


def _of_modality(
    policy: Policy,
    rollouts: Sequence[Rollout],
    advantage: torch.Tensor,
    modality: Modality,
    settings: LossSettings,
    groups: int,
    rng: np.random.Generator,
) -> list[_Pass]:
    found = [(s, i) for i, rollout in enumerate(rollouts) for s in rollout.segments if s.kind == modality]
    if not found:
        return []
    total = policy.steps([segment for segment, _ in found])
    count = max(1, round(settings.loss_step_fraction * total))
    alpha = settings.of(modality).alpha
    weight = decision_weight(alpha, settings.scale, policy.decisions(modality)) * total / count / groups
    size = settings.micro_batch or len(found)
    passes = []
    for step in sorted(rng.choice(total, count, replace=False).tolist()):
        for first in range(0, len(found), size):
            segments, owners = zip(*found[first : first + size], strict=True)
            passes.append(_Pass(segments, step, advantage[list(owners)], weight, len(rollouts)))
    return passes


def _accumulate(
    policy: Policy, groups: Sequence[ScoredGroup], passes: Passes, settings: LossSettings, ranks: Ranks
) -> Found:
    """Add the gradients of all passes; what the steps of a group's images share is computed once."""
    found = []
    with ranks.together():
        for (i, modality), mine in passes.items():
            value, stats = 0.0, LossStats()
            shared = dict.fromkeys(segment for one in mine for segment in one.segments)
            with policy.sharing(list(shared)):
                for one in mine:
                    loss, figures = _loss(policy, one, settings.of(modality))
                    loss.backward()  # type: ignore[no-untyped-call]
                    value, stats = value + float(loss.detach()), stats + figures
            _check_finite(value, groups[i], i, modality)
            found.append((i, modality, value, stats))
    return found


def _in_step(
    policy: Policy, groups: Sequence[ScoredGroup], passes: Passes, settings: LossSettings, ranks: Ranks
) -> Found:
    """Add the gradients of all passes of a split policy, whose every pass exchanges parameters and gradients.

    So all ranks make equally many: those that have fewer add passes of a blank segment with weight 0. Nothing is shared
    between passes, and a loss that is not finite is raised after the last one.
    """
    found = {key: (0.0, LossStats()) for key in passes}
    for modality in MODALITIES:
        mine = [(key, one) for key, found_here in passes.items() if key[1] == modality for one in found_here]
        chosen = settings.of(modality)
        for number in range(max(ranks.gather_all(len(mine)))):
            if number >= len(mine):
                blank = _blank_loss(policy, modality, reference=chosen.beta > 0)
                blank.backward()  # type: ignore[no-untyped-call]
                continue
            key, one = mine[number]
            loss, figures = _loss(policy, one, chosen)
            (loss * ranks.world).backward()  # type: ignore[no-untyped-call]  # FSDP2 averages over the ranks
            value, stats = found[key]
            found[key] = value + float(loss.detach()), stats + figures
    with ranks.together():
        for (i, modality), (value, _) in found.items():
            _check_finite(value, groups[i], i, modality)
    return [(i, modality, value, stats) for (i, modality), (value, stats) in found.items()]


def _loss(policy: Policy, one: _Pass, chosen: ModalityLossSettings) -> tuple[torch.Tensor, LossStats]:
    terms = policy.terms(one.segments, one.step, reference=chosen.beta > 0)
    return clipped_loss(
        terms.new_BD,
        terms.old_BD,
        terms.reference_BD,
        terms.mask_BD,
        one.advantage.to(terms.new_BD.device),
        clip=chosen.clip,
        beta=chosen.beta,
        weight=one.weight,
        group_size=one.group_size,
        kl_BD=terms.kl_BD,
    )


def _blank_loss(policy: Policy, modality: Modality, *, reference: bool) -> torch.Tensor:
    """Return 0, with a graph that makes the calls of any pass of this modality."""
    terms = policy.terms([policy.blank(modality)], 0, reference=reference)
    parts = [terms.new_BD] if terms.kl_BD is None else [terms.new_BD, terms.kl_BD]
    return 0.0 * torch.stack([part.masked_fill(~terms.mask_BD, 0).sum() for part in parts]).sum()


def _check_finite(loss: float, group: ScoredGroup, number: int, modality: Modality) -> None:
    if not np.isfinite(loss):
        raise NonFinite(f"the {modality} loss is {loss} for prompt {group.previews.task.prompt.text!r}", number)


def _totals(found: Found, ranks: Ranks) -> tuple[dict[Modality, float], dict[Modality, LossStats]]:
    """Return the losses and figures of all ranks, added in the order of the groups."""
    losses, stats = dict.fromkeys(MODALITIES, 0.0), dict.fromkeys(MODALITIES, LossStats())
    documents = ranks.gather_all([(i, modality, loss, asdict(one)) for i, modality, loss, one in found])
    for _, modality, loss, one in sorted((d for part in documents for d in part), key=lambda d: d[0]):
        losses[modality] += loss
        stats[modality] += LossStats(**one)
    return losses, stats


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
