"""The training loop of all makers: AdamW, warm-up, cosine decay, gradient clipping, checkpoints.

The random numbers of step k follow from (seed, k), so that an interrupted run resumes bit for bit.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

CHECKPOINT_EVERY_S = 60.0


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one model. `warmup` is a share of `steps`; `lr` is the peak learning rate."""

    seed: int
    steps: int
    batch: int
    lr: float
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate of `step`: linear warm-up to `lr`, then half a cosine down to lr / 100."""
    warm = max(1, round(recipe.warmup * recipe.steps))
    if step < warm:
        return recipe.lr * (step + 1) / warm
    progress = (step - warm) / max(1, recipe.steps - warm)
    return recipe.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Apply weight decay to matrices, but not to vectors (biases, norms, temperatures)."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def fit(
    module: nn.Module,
    loss_of: Callable[[np.random.Generator], Tensor],
    recipe: Recipe,
    checkpoint: Path,
    *,
    name: str,
    position: int = 0,
    stop_after: int | None = None,
) -> float:
    """Train `module` in place until `recipe.steps` (or `stop_after`) and return the total seconds.

    `loss_of(rng)` draws a batch from `rng` and returns a scalar loss. Training resumes from a checkpoint of the same
    recipe and module; any other is ignored. Raises FloatingPointError when the loss is not finite.
    """
    optimizer = torch.optim.AdamW(parameter_groups(module, recipe.weight_decay), lr=recipe.lr, betas=(0.9, 0.98))
    start, spent_s = _resume(module, optimizer, recipe, checkpoint)
    end = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    module.train()
    began = saved = time.monotonic()
    bar = tqdm(
        range(start, end), initial=start, total=recipe.steps, desc=f"{name:>15}", position=position, mininterval=5.0
    )
    smooth = math.nan
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        loss = loss_of(np.random.default_rng((recipe.seed, step)))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"{name}: the loss is {value} at step {step}; lower lr={recipe.lr}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
        optimizer.step()
        smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
        bar.set_postfix_str(f"loss {smooth:.3f}", refresh=False)
        if time.monotonic() - saved > CHECKPOINT_EVERY_S:
            saved = time.monotonic()
            _save(module, optimizer, recipe, checkpoint, step + 1, spent_s + saved - began)
    spent_s += time.monotonic() - began
    if end > start:
        _save(module, optimizer, recipe, checkpoint, end, spent_s)
    return spent_s


def _save(
    module: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, path: Path, step: int, spent_s: float
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "recipe": asdict(recipe), "step": step, "spent_s": spent_s}, partial)
    os.replace(partial, path)


def _resume(module: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, path: Path) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    if state["recipe"] != asdict(recipe) or shapes != {key: value.shape for key, value in state["module"].items()}:
        return 0, 0.0
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state["spent_s"])
