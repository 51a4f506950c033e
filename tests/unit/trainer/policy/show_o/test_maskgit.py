"""The sampler: inversion, resuming, committed positions. tests/numerics has its published numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.policy.show_o import maskgit

Uniforms = Callable[..., Tensor]


def test_draw_follows_the_distribution_exactly() -> None:
    """A fine grid of uniforms hits every code in proportion to its probability, within one."""
    logp = torch.randn(7, generator=torch.Generator().manual_seed(0)).mul(2).log_softmax(-1)
    count = 20_000
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    hits = torch.bincount(maskgit.draw(logp.expand(count, 7), grid), minlength=7)
    assert (hits - count * logp.double().exp()).abs().max() <= 1.0


@given(st.lists(st.one_of(st.just(-math.inf), st.floats(-30, 0)), min_size=1, max_size=9), st.integers(1, 2**24 - 1))
def test_draw_takes_only_possible_codes(weights: list[float], place: int) -> None:
    if all(math.isinf(w) for w in weights):
        weights[0] = 0.0
    logp = torch.tensor(weights).log_softmax(-1)
    code = int(maskgit.draw(logp[None], torch.tensor([place / 2**24])))
    assert torch.isfinite(logp[code])
    reached = np.cumsum(logp.exp().double().numpy())
    assert code == int(np.argmax(reached >= place / 2**24 * reached[-1]))


def guided(codes_BN: Tensor, masked_BN: Tensor, scored_BN: Tensor) -> Tensor:
    """Log-probabilities that depend on every committed code and its position."""
    weighted = torch.where(masked_BN, 0.5, codes_BN.float()).cumsum(-1).sum(-1)
    waves = torch.arange(6) * (1.0 + torch.arange(codes_BN.shape[1])[:, None])
    return (3.0 * torch.sin(weighted[:, None, None] + waves)).log_softmax(-1)[scored_BN]


def everything(state: maskgit.State) -> list[Tensor]:
    return [getattr(state, field.name) for field in fields(state)]


@pytest.mark.parametrize("cuts", [(2, 10), (1, 2, 9, 10), (10, 10)])
def test_resumed_denoising_equals_uninterrupted(uniforms: Uniforms, cuts: tuple[int, ...]) -> None:
    uniform = uniforms(4, 10, 2, 25)
    state = maskgit.begin(uniform)
    for until in cuts:
        state = maskgit.denoise(state, guided, until)
    whole = maskgit.denoise(maskgit.begin(uniform), guided, 10)
    assert all(torch.equal(a, b) for a, b in zip(everything(state), everything(whole), strict=True))


def test_denoising_does_not_change_the_previous_state(uniforms: Uniforms) -> None:
    state = maskgit.denoise(maskgit.begin(uniforms(2, 10, 2, 25)), guided, 3)
    before = [tensor.clone() for tensor in everything(state)]
    maskgit.denoise(state, guided, 10)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(state), strict=True))


def test_one_position_and_one_step(uniforms: Uniforms) -> None:
    done = maskgit.denoise(maskgit.begin(uniforms(2, 1, 2, 1)), guided, 1)
    assert done.codes_BTN.shape == (2, 1, 1)
    assert done.remasked_BN.all()


def test_scoring_every_position_draws_the_same_codes(uniforms: Uniforms) -> None:
    """Only log-probabilities of positions that no step sampled are added: those of the codes that they hold."""
    uniform = uniforms(3, 6, 2, 25)
    few = maskgit.denoise(maskgit.begin(uniform), guided, 6)
    every = maskgit.denoise(maskgit.begin(uniform), guided, 6, everywhere=True)
    for name in ("codes_BTN", "masked_BTN", "remasked_BN"):
        assert torch.equal(getattr(few, name), getattr(every, name))
    masked = few.masked_BTN
    assert torch.equal(few.logp_BTN[masked], every.logp_BTN[masked])
    assert (few.logp_BTN[~masked] == 0).all()
    for step in range(1, 6):
        held, unmasked = every.codes_BTN[:, step], ~masked[:, step]
        logp = guided(held, masked[:, step], unmasked)
        expected = logp.gather(-1, held[unmasked][:, None]).squeeze(-1)
        assert torch.equal(every.logp_BTN[:, step][unmasked], expected)


def test_values_go_to_their_positions() -> None:
    positions = torch.tensor([[True, False, True], [False, False, True]])
    found = maskgit.at_positions(torch.tensor([1.0, 2.0, 3.0]), positions)
    assert found.tolist() == [[1, 0, 2], [0, 0, 3]]
