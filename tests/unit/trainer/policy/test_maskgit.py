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

from trainer.policy import maskgit

Uniforms = Callable[..., Tensor]


def test_draw_by_hand() -> None:
    logp = torch.tensor([0.2, 0.3, 0.5]).log().expand(1, 6, 3)
    uniform = torch.tensor([[2.0**-24, 0.19, 0.21, 0.49, 0.51, 1 - 2.0**-24]])
    assert maskgit.draw(logp, uniform).tolist() == [[0, 0, 1, 1, 2, 2]]


def test_draw_follows_the_distribution_exactly() -> None:
    """A fine grid of uniforms hits every code in proportion to its probability, within one."""
    logp = torch.randn(7, generator=torch.Generator().manual_seed(0)).mul(2).log_softmax(-1)
    count = 20_000
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    hits = torch.bincount(maskgit.draw(logp.expand(1, count, 7), grid[None])[0], minlength=7)
    assert (hits - count * logp.double().exp()).abs().max() <= 1.0


def test_random_draws_pass_a_chi_square_test(uniforms: Uniforms) -> None:
    logp, count = torch.tensor([0.05, 0.1, 0.15, 0.3, 0.4]).log(), 50_000
    hits = torch.bincount(maskgit.draw(logp.expand(1, count, 5), uniforms(1, count))[0], minlength=5)
    expected = count * logp.exp()
    assert float(((hits - expected) ** 2 / expected).sum()) < 18.47  # p = .001 at 4 degrees of freedom


@given(st.lists(st.one_of(st.just(-math.inf), st.floats(-30, 0)), min_size=1, max_size=9), st.integers(1, 2**24 - 1))
def test_draw_takes_only_possible_codes(weights: list[float], place: int) -> None:
    if all(math.isinf(w) for w in weights):
        weights[0] = 0.0
    logp = torch.tensor(weights).log_softmax(-1)
    code = int(maskgit.draw(logp[None, None], torch.tensor([[place / 2**24]])))
    assert torch.isfinite(logp[code])
    reached = np.cumsum(np.exp(logp.double().numpy()))
    assert code == int(np.argmax(reached >= place / 2**24 * reached[-1]))


def guided(codes_BN: Tensor, masked_BN: Tensor) -> Tensor:
    """Log-probabilities that depend on every committed code and its position."""
    weighted = torch.where(masked_BN, 0.5, codes_BN.float()).cumsum(-1).sum(-1)
    waves = torch.arange(6) * (1.0 + torch.arange(codes_BN.shape[1])[:, None])
    return (3.0 * torch.sin(weighted[:, None, None] + waves)).log_softmax(-1)


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


def test_a_stopped_state_is_re_masked(uniforms: Uniforms) -> None:
    """The preview is a full draw, but the state continues from the committed codes only."""
    state = maskgit.denoise(maskgit.begin(uniforms(3, 10, 2, 100)), guided, 2)
    assert (state.codes_BTN[:, -1] >= 0).all()
    assert state.remasked_BN.sum(-1).tolist() == [maskgit.to_remask(100, 99, 1, 10)] * 3
    seen: list[Tensor] = []

    def watched(codes_BN: Tensor, masked_BN: Tensor) -> Tensor:
        seen.append(masked_BN)
        return guided(codes_BN, masked_BN)

    maskgit.denoise(state, watched, 3)
    assert torch.equal(seen[0], state.remasked_BN)


def test_committed_positions_stay(uniforms: Uniforms) -> None:
    done = maskgit.denoise(maskgit.begin(uniforms(4, 12, 2, 50)), guided, 12)
    assert done.masked_BTN[:, 0].all()
    for t in range(1, 12):
        committed = ~done.masked_BTN[:, t]
        assert torch.equal(done.codes_BTN[:, t][committed], done.codes_BTN[:, t - 1][committed])
        assert not (done.masked_BTN[:, t] & ~done.masked_BTN[:, t - 1]).any()  # never masked again
        assert (
            done.masked_BTN[:, t].sum(-1) == maskgit.to_remask(50, int(done.masked_BTN[0, t - 1].sum()), t - 1, 12)
        ).all()


def test_recorded_logp_is_that_of_the_draw(uniforms: Uniforms) -> None:
    done = maskgit.denoise(maskgit.begin(uniforms(2, 6, 2, 9)), guided, 6)
    for t in range(6):
        held = done.codes_BTN[:, t - 1] if t else torch.zeros(2, 9, dtype=torch.long)
        logp = guided(held, done.masked_BTN[:, t])
        for b in range(2):
            for n in range(9):
                assert done.logp_BTN[b, t, n] == logp[b, n, done.codes_BTN[b, t, n]]


def test_rows_are_independent(uniforms: Uniforms) -> None:
    uniform = uniforms(5, 8, 2, 20)
    together = maskgit.denoise(maskgit.begin(uniform), guided, 8)
    for b in range(5):
        alone = maskgit.denoise(maskgit.begin(uniform[b : b + 1]), guided, 8)
        assert torch.equal(alone.codes_BTN[0], together.codes_BTN[b])


def test_one_position_and_one_step(uniforms: Uniforms) -> None:
    done = maskgit.denoise(maskgit.begin(uniforms(2, 1, 2, 1)), guided, 1)
    assert done.codes_BTN.shape == (2, 1, 1)
    assert done.remasked_BN.all()
