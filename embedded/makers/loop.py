"""The training loop of all makers: AdamW, warm-up, cosine decay, gradient clipping, checkpoints.

The random numbers of step k follow from (seed, k), so that an interrupted run resumes bit for bit.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

CHECKPOINT_EVERY_S = 60.0
BLOCKS = re.compile(r"\.(layers|transformer_blocks)\.")  # in names of parameters
Part = Callable[[], Tensor]


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


@dataclass(frozen=True)
class MuonRecipe(Recipe):
    """Hyperparameters of a model whose blocks' matrices are trained by Muon, and the rest by AdamW.

    `muon_lr` is the peak learning rate of Muon, whose updates are orthogonal (Jordan et al. 2024). The rate is constant
    until the last `decay` steps and falls linearly there, so that a run may be prolonged or ended from a checkpoint.
    `warmup` is in steps.
    """

    muon_lr: float = 0.02
    decay: int = 1000


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate of `step`: linear warm-up to `lr`, then half a cosine down to lr / 100.

    That of a MuonRecipe is constant after the warm-up, and falls linearly to lr / 100 in the last `decay` steps.
    """
    if isinstance(recipe, MuonRecipe):
        rising, falling = (step + 1) / max(1.0, recipe.warmup), (recipe.steps - step) / max(1, recipe.decay)
        return recipe.lr * max(0.01, min(1.0, rising, falling))
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


def _active_s(workers: int) -> float:
    return time.process_time() / workers


class _Optimizers:
    """AdamW for all parameters, or Muon for the matrices of blocks and AdamW for the rest."""

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        betas = (0.9, 0.98)
        if not isinstance(recipe, MuonRecipe):
            groups = parameter_groups(module, recipe.weight_decay)
            self.all: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=recipe.lr, betas=betas)]
        else:
            named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
            blocks = [p for name, p in named if BLOCKS.search(name) and p.ndim == 2]
            rest = [p for name, p in named if not (BLOCKS.search(name) and p.ndim == 2)]
            muon = torch.optim.Muon(blocks, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, momentum=0.95)
            self.all = [torch.optim.AdamW(rest, lr=recipe.lr, betas=betas, weight_decay=0.0), muon]
        self._peaks = [group["lr"] for optimizer in self.all for group in optimizer.param_groups]

    def set_share(self, share: float) -> None:
        """Set every learning rate to `share` of its peak."""
        groups = [group for optimizer in self.all for group in optimizer.param_groups]
        for group, peak in zip(groups, self._peaks, strict=True):
            group["lr"] = peak * share

    def step(self) -> None:
        for optimizer in self.all:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.all]

    def load(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


def fit(
    module: nn.Module,
    loss_of: Callable[[np.random.Generator], Tensor | list[Part]],
    recipe: Recipe,
    checkpoint: Path,
    *,
    name: str,
    position: int = 0,
    stop_after: int | None = None,
    workers: int = 1,
) -> float:
    """Train `module` in place until `recipe.steps` (or `stop_after`) and return the total seconds.

    Seconds are CPU seconds per worker, so that a pause or a busy machine does not count. `loss_of(rng)` draws a batch
    from `rng` and returns a scalar loss, or parts of which it is the sum, to be computed in threads. Training resumes
    from a checkpoint of the same recipe and module; any other is ignored. Raises FloatingPointError when the loss is
    not finite.
    """
    optimizers = _Optimizers(module, recipe)
    start, spent_s = _resume(module, optimizers, recipe, checkpoint)
    end = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    module.train()
    began, saved = _active_s(workers), time.monotonic()
    bar = tqdm(
        range(start, end), initial=start, total=recipe.steps, desc=f"{name:>15}", position=position, mininterval=5.0
    )
    smooth = math.nan
    for step in bar:
        optimizers.set_share(learning_rate(recipe, step) / recipe.lr)
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        optimizers.zero_grad()
        value = _backward(loss_of(np.random.default_rng((recipe.seed, step))))
        if not math.isfinite(value):
            raise FloatingPointError(f"{name}: the loss is {value} at step {step}; lower lr={recipe.lr}")
        nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
        optimizers.step()
        smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
        bar.set_postfix_str(f"loss {smooth:.3f}", refresh=False)
        if time.monotonic() - saved > CHECKPOINT_EVERY_S:
            saved = time.monotonic()
            _save(module, optimizers, recipe, checkpoint, step + 1, spent_s + _active_s(workers) - began)
    spent_s += _active_s(workers) - began
    if end > start:
        _save(module, optimizers, recipe, checkpoint, end, spent_s)
    return spent_s


def _backward(loss: Tensor | list[Part]) -> float:
    """Compute the gradients of a loss, or of parts in a thread each, and return its value.

    Two single-threaded parts are faster than one with two threads. The sum of two gradients does not depend on their
    order, so that a run stays the same bit for bit.
    """
    if isinstance(loss, Tensor):
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())
    with ThreadPoolExecutor(len(loss)) as threads:
        return sum(threads.map(lambda part: _backward(part()), loss))


def _continues(stored: dict[str, Any], recipe: Recipe, step: int) -> bool:
    """Whether a checkpoint at `step` of the `stored` recipe is one of `recipe`, too.

    Recipes with a constant rate agree up to the first decay if they differ in nothing else.
    """
    wanted = asdict(recipe)
    if stored == wanted or not isinstance(recipe, MuonRecipe):
        return stored == wanted
    lengths = ("steps", "decay")
    same = {k: v for k, v in stored.items() if k not in lengths} == {
        k: v for k, v in wanted.items() if k not in lengths
    }
    return same and step <= min(recipe.steps - recipe.decay, stored["steps"] - stored["decay"])


def _save(module: nn.Module, optimizers: _Optimizers, recipe: Recipe, path: Path, step: int, spent_s: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {"module": module.state_dict(), "optimizers": optimizers.state()}
    torch.save({**state, "recipe": asdict(recipe), "step": step, "spent_s": spent_s}, partial)
    os.replace(partial, path)


def _resume(module: nn.Module, optimizers: _Optimizers, recipe: Recipe, path: Path) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    if not _continues(state["recipe"], recipe, state["step"]) or shapes != {
        key: value.shape for key, value in state["module"].items()
    }:
        return 0, 0.0
    module.load_state_dict(state["module"])
    optimizers.load(state["optimizers"])
    return int(state["step"]), float(state["spent_s"])
