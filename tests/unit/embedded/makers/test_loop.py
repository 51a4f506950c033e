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

from embedded.makers.loop import MuonRecipe, Recipe, fit, learning_rate

RECIPE = Recipe(seed=3, steps=12, batch=8, lr=0.05)
MUON = MuonRecipe(seed=3, steps=12, batch=8, lr=0.05, weight_decay=0.0, warmup=2, muon_lr=0.02, decay=4)


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


def blocks(seed: int) -> tuple[nn.Module, object]:
    """Return a module whose matrices are in `layers`, as those of a transformer, and its loss."""
    torch.manual_seed(seed)
    module = nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])})})
    first, second = module["model"]["layers"]

    def loss(rng: np.random.Generator) -> Tensor:
        x = torch.from_numpy(rng.normal(size=(RECIPE.batch, 4)).astype(np.float32))
        return functional.mse_loss(second(torch.tanh(first(x))), x.roll(1, 1))

    return module, loss


def trained_by_muon(checkpoint: Path, recipe: MuonRecipe, seed: int = 0, stop_after: int | None = None) -> list[Tensor]:
    module, loss = blocks(seed)
    fit(module, loss, recipe, checkpoint, name="a", stop_after=stop_after)
    return list(module.state_dict().values())


def test_muon_moves_matrices_by_its_rate(tmp_path: Path) -> None:
    """The first update of a square matrix is orthogonal: its spectral norm is about the learning rate."""
    before = [value.clone() for value in blocks(0)[0].state_dict().values()]
    recipe = replace(MUON, warmup=1, steps=100)
    after = trained_by_muon(tmp_path / "a.ckpt", recipe, stop_after=1)
    for old, new in zip(before, after, strict=True):
        if old.ndim == 2:
            norms = torch.linalg.svdvals((new - old).double())
            assert 0.5 * recipe.muon_lr < norms.min() <= norms.max() < 1.5 * recipe.muon_lr
        else:  # AdamW's first update is the learning rate in every component
            torch.testing.assert_close((new - old).abs(), torch.full_like(old, recipe.lr), rtol=0.01, atol=0)


def test_prolonged_run_equals_a_long_one_bitwise(tmp_path: Path) -> None:
    """A checkpoint before the decay belongs to every recipe of that rate; one in the decay to its own only."""
    long = replace(MUON, steps=20)
    straight = trained_by_muon(tmp_path / "a.ckpt", long)
    trained_by_muon(tmp_path / "b.ckpt", MUON, stop_after=8)  # its decay begins there
    assert equal(straight, trained_by_muon(tmp_path / "b.ckpt", long, seed=99))
    trained_by_muon(tmp_path / "c.ckpt", MUON, stop_after=9)
    assert equal(straight, trained_by_muon(tmp_path / "c.ckpt", long))  # from the start: the checkpoint is ignored
    trained_by_muon(tmp_path / "d.ckpt", long, stop_after=5)
    other = trained_by_muon(tmp_path / "d.ckpt", replace(long, muon_lr=0.01))
    assert not equal(straight, other)


def test_constant_rate_falls_linearly_at_the_end() -> None:
    recipe = MuonRecipe(seed=0, steps=100, batch=1, lr=2.0, warmup=10, decay=20)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert set(rates[9:81]) == {2.0}
    assert rates[90] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.1)
