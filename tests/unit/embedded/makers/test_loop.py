"""The loop: an interrupted run ends in the same weights, bit for bit; the schedule is as documented."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedded.makers.loop import Recipe, fit, learning_rate

RECIPE = Recipe(seed=3, steps=12, batch=8, lr=0.05)


def task(seed: int) -> tuple[nn.Module, object]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 1))

    def loss(rng: np.random.Generator) -> Tensor:
        x = torch.from_numpy(rng.normal(size=(RECIPE.batch, 4)).astype(np.float32))
        return functional.mse_loss(module(x)[:, 0], x.prod(1))

    return module, loss


def trained(checkpoint: Path, *, seed: int = 0, recipe: Recipe = RECIPE, stop_after: int | None = None) -> list[Tensor]:
    """Return the weights after `fit`."""
    module, loss = task(seed)
    fit(module, loss, recipe, checkpoint, name="a", stop_after=stop_after)
    return list(module.state_dict().values())


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("stop", [1, 7, 12])
def test_resume_equals_uninterrupted_bitwise(tmp_path: Path, stop: int) -> None:
    """Another initialisation is overwritten by the checkpoint; a finished run is not trained further."""
    straight = trained(tmp_path / "a.ckpt")
    trained(tmp_path / "b.ckpt", stop_after=stop)
    assert equal(straight, trained(tmp_path / "b.ckpt", seed=99))


def test_checkpoint_of_another_run_is_ignored(tmp_path: Path) -> None:
    fresh = trained(tmp_path / "fresh.ckpt")
    trained(tmp_path / "recipe.ckpt", recipe=replace(RECIPE, seed=4))
    assert equal(fresh, trained(tmp_path / "recipe.ckpt"))
    wide = nn.Linear(4, 2)
    fit(wide, lambda _: wide(torch.ones(1, 4)).sum(), RECIPE, tmp_path / "module.ckpt", name="a")
    assert equal(fresh, trained(tmp_path / "module.ckpt"))


def test_non_finite_loss_stops_the_run(tmp_path: Path) -> None:
    module, _ = task(0)
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        fit(module, lambda _: module(torch.full((1, 4), math.nan)).sum(), RECIPE, tmp_path / "a.ckpt", name="a")


def test_learning_rate_warms_up_and_decays_to_a_hundredth() -> None:
    recipe = Recipe(seed=0, steps=100, batch=1, lr=1.0, warmup=0.1)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.01 + 0.99 / 2)  # half-way down
    assert rates[99] < 0.011
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
