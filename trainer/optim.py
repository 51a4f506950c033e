"""The optimizer and its learning rate."""

from __future__ import annotations

import math

import torch

from synod.errors import SettingsError
from trainer.policy.base import Policy
from trainer.settings import OptimizerSettings, TrainerSettings

WEIGHT_DECAY = 1e-3  # that of the authors' code


def make_optimizer(policy: Policy, settings: TrainerSettings) -> torch.optim.AdamW:
    """Create AdamW over the policy's trainable parameters, fused if they are on a GPU.

    `initial_lr` of each parameter group is its modality's learning rate, else that of [trainer.optimizer]. Raises
    SettingsError for the learning rate of a modality without parameters of its own.
    """
    groups = policy.parameter_groups()
    rates = {"text": settings.loss.text.lr, "image": settings.loss.image.lr}
    for kind, rate in rates.items():
        if rate is not None and all(group.kind != kind for group in groups):
            raise SettingsError(
                f"[trainer.loss.{kind}] lr = {rate:g}, but the policy has no parameters that sample {kind} alone; "
                "remove it, and set [trainer.optimizer] lr"
            )
    tables = []
    for group in groups:
        rate = settings.optimizer.lr if group.kind is None else rates[group.kind] or settings.optimizer.lr
        tables.append({"params": list(group.parameters), "lr": rate, "initial_lr": rate})
    fused = True if all(p.is_cuda for group in groups for p in group.parameters) else None
    return torch.optim.AdamW(tables, weight_decay=WEIGHT_DECAY, fused=fused)


def set_learning_rates(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, step: int, steps: int) -> None:
    """Set the learning rate of each parameter group for step 0, 1, ..., steps - 1."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * lr_factor(settings, step, steps)


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
