"""One update of the policy from scored groups by Sync-GRPO's loss (Sync-R1, eq. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

from trainer.algorithms.losses import LossStats
from trainer.credit import Slopes, is_usable, modality_advantages
from trainer.distributed import ONE_RANK, WHOLE, Ranks, Sharding, whole
from trainer.errors import NonFinite
from trainer.gradient_meter import GradientMeter
from trainer.groups import ScoredGroup
from trainer.optim import learning_rates
from trainer.passes import Found, accumulate, in_step, passes_of
from trainer.policy.base import Policy
from trainer.settings import TrainerSettings
from trainer.types import MODALITIES, Modality

MAX_GRAD_NORM = 1.0  # the paper's


@dataclass(frozen=True, slots=True)
class Update:
    """Figures of one update.

    losses         sums over groups
    stats          over the decisions of each modality
    grad_norm      of the gradient before it is clipped; None if all groups were skipped
    advantage_abs  mean |advantage| of the groups with decisions of each modality; None without such a group
    cosines        `pair_cosine` of the groups' gradients of each modality; None below two groups, or for a split policy
    skipped        groups with too few rewards (`trainer.credit.is_usable`)
    flat           groups whose rewards are all equal, which have no signal
    """

    losses: dict[Modality, float]
    stats: dict[Modality, LossStats]
    grad_norm: float | None
    advantage_abs: dict[Modality, float | None]
    cosines: dict[Modality, float | None]
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
    sharding: Sharding = WHOLE,
) -> Update:
    """Accumulate the gradients of all groups over all ranks, clip their norm, and take one optimizer step.

    Each rank computes the gradients of the groups that it drew. The sum, and so the step, is the same on every rank.
    Takes no step if every group is skipped. Raises NonFinite, or OtherRankFailed on the other ranks, before parameters
    or optimizer change. Local work is done in `Ranks.together`, which nothing is sent in. A failure of the optimizer's
    step may leave parameters changed, so that nothing may be saved after it (`together(undone=False)`).
    """
    optimizer.zero_grad(set_to_none=True)
    usable = [i for i, group in enumerate(groups) if is_usable(group, settings.loss)]
    if not usable:
        return Update(
            *_totals([], ONE_RANK), None, dict.fromkeys(MODALITIES), dict.fromkeys(MODALITIES), len(groups), 0
        )
    with ranks.together():
        found = modality_advantages([groups[i] for i in usable], slopes, settings.loss, settings.screen)
        advantages = {modality: dict(zip(usable, found[modality], strict=True)) for modality in MODALITIES}
        passes = passes_of(policy, groups, usable, advantages, settings, step)
        meter = None if sharding.is_on else GradientMeter(policy.module.parameters())
    cosines: dict[Modality, float | None] = dict.fromkeys(MODALITIES)
    with sharding.split():
        if meter is None:
            own = in_step(policy, groups, passes, settings.loss, ranks, sharding)
            norm = _clip(policy)  # the ranks exchange the squares of their parts
        else:
            own = accumulate(policy, groups, passes, settings.loss, ranks, meter)
            meter.exchange(ranks)
            ranks.sum_gradients(policy.module.parameters())
        losses, stats = _totals(own, ranks)
        with ranks.together():
            if meter is not None:
                cosines, norm = meter.cosines(), _clip(policy)
            if not np.isfinite(norm):
                raise NonFinite(f"the gradient's norm is {norm}", None)
            for parameters, lr in zip(optimizer.param_groups, learning_rates(policy, settings, step), strict=True):
                parameters["lr"] = lr
        with ranks.together(undone=False):
            optimizer.step()
    spread = {
        modality: _mean_abs([own.advantage for i, own in of.items() if modality in groups[i].previews.task.modalities])
        for modality, of in advantages.items()
    }
    flat = sum(groups[i].is_flat for i in usable)
    return Update(losses, stats, norm, spread, cosines, len(groups) - len(usable), flat)


def _mean_abs(advantages: Sequence[torch.Tensor]) -> float | None:
    """Return the mean over groups of each one's mean |advantage|; None without a group."""
    return float(np.mean([float(one.abs().mean()) for one in advantages])) if advantages else None


def _clip(policy: Policy) -> float:
    """Clip the gradient's norm, and return what it was."""
    return float(whole(nn.utils.clip_grad_norm_(policy.module.parameters(), MAX_GRAD_NORM)))


def _totals(found: Found, ranks: Ranks) -> tuple[dict[Modality, float], dict[Modality, LossStats]]:
    """Return the losses and figures of all ranks, added in the order of the groups."""
    losses, stats = dict.fromkeys(MODALITIES, 0.0), dict.fromkeys(MODALITIES, LossStats())
    documents = ranks.gather_all([(i, modality, loss, asdict(one)) for i, modality, loss, one in found])
    for _, modality, loss, one in sorted((d for part in documents for d in part), key=lambda d: d[0]):
        losses[modality] += loss
        stats[modality] += LossStats(**one)
    return losses, stats
