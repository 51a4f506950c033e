"""The optimizer and its learning rate."""

from __future__ import annotations

import math

import torch

from trainer.policy.base import Policy
from trainer.settings import OptimizerSettings

WEIGHT_DECAY = 1e-3  # that of the authors' code


def make_optimizer(policy: Policy, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Create AdamW over the policy's trainable parameters, fused if they are on a GPU."""
    parameters = [p for p in policy.module.parameters() if p.requires_grad]
    fused = True if all(p.is_cuda for p in parameters) else None
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=WEIGHT_DECAY, fused=fused)


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
