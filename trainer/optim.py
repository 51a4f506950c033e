"""The optimizer and its learning rate."""

from __future__ import annotations

import torch

from trainer.policy.base import Policy
from trainer.settings import OptimizerSettings

WEIGHT_DECAY = 1e-3  # that of the authors' code


def make_optimizer(policy: Policy, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Create AdamW over the policy's trainable parameters."""
    parameters = [p for p in policy.module.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=WEIGHT_DECAY)


def learning_rate(settings: OptimizerSettings, step: int) -> float:
    """Return the learning rate of step 0, 1, ...: linear over `warmup_steps`, then constant."""
    return settings.lr * min(1.0, (step + 1) / (settings.warmup_steps + 1))
