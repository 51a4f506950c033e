"""The forward and backward passes of an update, of a whole policy and of one that is split over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainer.algorithms.losses import LossStats, clipped_loss, decision_weight
from trainer.credit import Credit
from trainer.distributed import Ranks, Sharding
from trainer.errors import NonFinite
from trainer.gradient_meter import GradientMeter
from trainer.groups import ScoredGroup
from trainer.policy.base import Policy
from trainer.settings import LossSettings, TrainerSettings
from trainer.types import MODALITIES, Modality, Rollout, Segment


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """A forward and a backward pass: segments of one modality of a group, at one of their sampling steps.

    advantage   of each segment's rollout
    weight      of a decision in the loss
    group_size  rollouts of the group that enter the update
    """

    segments: tuple[Segment, ...]
    step: int
    advantage: torch.Tensor
    weight: float
    group_size: int


Passes = Mapping[tuple[int, Modality], Sequence[Pass]]  # of this rank, by group and modality
Found = list[tuple[int, Modality, float, LossStats]]  # (group, modality, loss, figures)


def passes_of(
    policy: Policy,
    groups: Sequence[ScoredGroup],
    usable: Sequence[int],
    advantages: Mapping[Modality, Mapping[int, Credit]],
    settings: TrainerSettings,
    step: int,
) -> Passes:
    """Return the passes of those of the usable groups that this rank drew.

    Each has one sampling step and one micro-batch, to save memory. `advantages` say which rollouts of a group enter. A
    modality that no trained parameter samples has none.
    """
    found: dict[tuple[int, Modality], Sequence[Pass]] = {}
    trained = {group.kind for group in policy.parameter_groups()}
    for i in usable:
        if groups[i].is_ours:
            for modality in MODALITIES:
                if not trained & {modality, None}:
                    found[i, modality] = []
                    continue
                credit, rng = advantages[modality][i], np.random.default_rng([settings.seed, step, i])
                chosen = [groups[i].rollouts[place] for place in credit.places]
                found[i, modality] = _of_modality(
                    policy, chosen, credit.advantage, modality, settings.loss, len(usable), rng
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
) -> list[Pass]:
    found = [(s, i) for i, rollout in enumerate(rollouts) for s in rollout.segments if s.kind == modality]
    if not found:
        return []
    total = policy.steps([segment for segment, _ in found])
    count = max(1, round(settings.loss_step_fraction * total))
    alpha = settings.of(modality).alpha
    weight = decision_weight(alpha, settings.scale, policy.decisions(modality), total) * total / count / groups
    size = settings.micro_batch or len(found)
    passes = []
    for step in sorted(rng.choice(total, count, replace=False).tolist()):
        for first in range(0, len(found), size):
            segments, owners = zip(*found[first : first + size], strict=True)
            passes.append(Pass(segments, step, advantage[list(owners)], weight, len(rollouts)))
    return passes


def accumulate(
    policy: Policy,
    groups: Sequence[ScoredGroup],
    passes: Passes,
    settings: LossSettings,
    ranks: Ranks,
    meter: GradientMeter | None = None,
) -> Found:
    """Add the gradients of all passes; what the steps of a group's images share is computed once.

    `meter` takes the gradient of each group's modality.
    """
    found = []
    with ranks.together():
        for (i, modality), mine in passes.items():
            value, stats = 0.0, LossStats()
            shared = dict.fromkeys(segment for one in mine for segment in one.segments)
            with policy.sharing(list(shared)):
                for one in mine:
                    loss, figures = _loss(policy, one, settings, modality)
                    loss.backward()  # type: ignore[no-untyped-call]
                    value, stats = value + float(loss.detach()), stats + figures
            _check_finite(value, groups[i], i, modality)
            if meter is not None:
                meter.add(i, modality)
            found.append((i, modality, value, stats))
    return found


def in_step(
    policy: Policy,
    groups: Sequence[ScoredGroup],
    passes: Passes,
    settings: LossSettings,
    ranks: Ranks,
    sharding: Sharding,
) -> Found:
    """Add the gradients of all passes of a split policy, whose every pass exchanges parameters and gradients.

    So all ranks make equally many: those that have fewer add passes of a blank segment with weight 0. Replicas of the
    policy exchange gradients in the last pass only. Nothing is shared between passes, and a loss that is not finite is
    raised after the last one.
    """
    found = {key: (0.0, LossStats()) for key in passes}
    mine = {m: [(key, one) for key, here in passes.items() if key[1] == m for one in here] for m in MODALITIES}
    counts = ranks.gather_all({modality: len(ours) for modality, ours in mine.items()})
    schedule = [(m, number) for m in MODALITIES for number in range(max(count[m] for count in counts))]
    for place, (modality, number) in enumerate(schedule, 1):
        sharding.exchange_replicas(place == len(schedule))
        if number >= len(mine[modality]):
            blank = _blank_loss(policy, modality, reference=settings.of(modality).beta > 0)
            blank.backward()  # type: ignore[no-untyped-call]
            continue
        key, one = mine[modality][number]
        loss, figures = _loss(policy, one, settings, modality)
        (loss * ranks.world).backward()  # type: ignore[no-untyped-call]  # FSDP2 averages over the ranks
        value, stats = found[key]
        found[key] = value + float(loss.detach()), stats + figures
    with ranks.together():
        for (i, modality), (value, _) in found.items():
            _check_finite(value, groups[i], i, modality)
    return [(i, modality, value, stats) for (i, modality), (value, stats) in found.items()]


def _loss(policy: Policy, one: Pass, settings: LossSettings, modality: Modality) -> tuple[torch.Tensor, LossStats]:
    chosen = settings.of(modality)
    terms = policy.terms(one.segments, one.step, reference=chosen.beta > 0)
    loss, stats = clipped_loss(
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
        own_length=settings.scale == "own_length",
        sensitivity=terms.sensitivity if settings.step_scale == "equal" else 1.0,
    )
    return loss, stats.at(one.step, policy.steps(one.segments)) if chosen.beta > 0 else stats


def _blank_loss(policy: Policy, modality: Modality, *, reference: bool) -> torch.Tensor:
    """Return 0, with a graph that makes the calls of any pass of this modality."""
    terms = policy.terms([policy.blank(modality)], 0, reference=reference)
    parts = [terms.new_BD] if terms.kl_BD is None else [terms.new_BD, terms.kl_BD]
    return 0.0 * torch.stack([part.masked_fill(~terms.mask_BD, 0).sum() for part in parts]).sum()


def _check_finite(loss: float, group: ScoredGroup, number: int, modality: Modality) -> None:
    if not np.isfinite(loss):
        raise NonFinite(f"the {modality} loss is {loss} for prompt {group.previews.task.prompt.text!r}", number)
