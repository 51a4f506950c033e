"""The optimizer and its learning rate."""

from __future__ import annotations

import math

import torch

from synod.errors import SettingsError
from trainer.policy.base import Policy
from trainer.settings import OptimizerSettings, TrainerSettings
from trainer.types import MODALITIES

WEIGHT_DECAY = 1e-3  # that of the authors' code


def make_optimizer(policy: Policy, settings: TrainerSettings) -> torch.optim.AdamW:
    """Create AdamW over the policy's parameter groups, fused if they are on a GPU.

    Raises SettingsError for the learning rate of a modality that has no parameters of its own; most are found by the
    settings, but not a connector or a transformer without a layer that an adapter is on.
    """
    groups = policy.parameter_groups()
    for kind in MODALITIES:
        own = settings.loss.of(kind).lr
        if own is not None and kind not in {group.kind for group in groups}:
            shared = any(group.kind is None for group in groups)
            raise SettingsError(
                f"[trainer.loss.{kind}] lr = {own:g}, but this policy "
                + (
                    "samples texts and images with the same parameters; give [trainer.optimizer] lr"
                    if shared
                    else f"trains nothing that samples {kind}s; remove it, or see [trainer.policy] trains and language"
                )
            )
    fused = True if all(p.is_cuda for group in groups for p in group.parameters) else None
    rates = learning_rates(policy, settings, 0)
    tables = [{"params": list(group.parameters), "lr": lr} for group, lr in zip(groups, rates, strict=True)]
    return torch.optim.AdamW(tables, lr=settings.optimizer.lr, weight_decay=WEIGHT_DECAY, fused=fused)


def learning_rates(policy: Policy, settings: TrainerSettings, step: int) -> list[float]:
    """Return the learning rate of each of the policy's parameter groups at a step."""
    factor = lr_factor(settings.optimizer, step, settings.steps)
    own = [None if group.kind is None else settings.loss.of(group.kind).lr for group in policy.parameter_groups()]
    return [factor * (settings.optimizer.lr if lr is None else lr) for lr in own]


def lr_factor(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Return what multiplies the learning rates at step 0, 1, ..., steps - 1; in (0, 1].

    It rises linearly over the first `warmup_steps` steps, and is 1 at the next one. Then it stays ("constant"), or
    falls towards 0 at step `steps`, in a line or in half a cosine.
    """
    if step < settings.warmup_steps:
        return (step + 1) / (settings.warmup_steps + 1)
    done = (step - settings.warmup_steps) / (steps - settings.warmup_steps)
    if settings.schedule == "linear":
        return 1 - done
    return (1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else 1.0
