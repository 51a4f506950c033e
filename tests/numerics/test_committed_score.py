"""The score of committed decisions: its mean is 0 if the order of commits ignores the draws, and not otherwise.

A policy of three positions and three codes is enumerated over every draw and every order of commits. Noise on the
confidence is Gumbel's, so a position is the next to be committed with probability softmax(confidence / scale). The
sampler itself, with tens of thousands of images, agrees with the enumeration.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer.policy.show_o import maskgit

N, V, T, TEMPERATURE = 3, 3, 3, 1.0  # positions, codes, steps; each step commits one position
IMAGES = 40_000
CHI2_6 = 27.9  # the 1 - 1e-4 quantile of chi-squared with (V - 1) N degrees of freedom
THETA = 1.5 * np.random.default_rng(2).standard_normal((N, V))
Array = NDArray[np.float64]
State = tuple[int | None, ...]  # the committed codes; None: masked


@functools.cache
def logp(state: State) -> Array:
    """Log-probabilities [N V] given the committed codes; their derivative by THETA is that of a softmax."""
    held = sum((n + 1) * (code + 1) for n, code in enumerate(state) if code is not None)
    logits = THETA + np.sin(held + 2.0 * np.arange(N)[:, None] + 3.0 * np.arange(V))
    found: Array = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return found


def score(state: State, position: int, code: int) -> Array:
    """The gradient [N V] of log p of one decision by THETA."""
    found = np.zeros((N, V))
    found[position] = -np.exp(logp(state)[position])
    found[position, code] += 1
    return found


def expected(by: maskgit.Confidence) -> tuple[Array, float]:
    """Return E[score] and E |score|^2 of the committed decisions, by enumeration."""
    mean, square = np.zeros((N, V)), 0.0

    def visit(state: State, step: int, p: float, total: Array) -> None:
        nonlocal mean, square
        masked = [n for n in range(N) if state[n] is None]
        if not masked:
            mean, square = mean + p * total, square + p * float((total**2).sum())
            return
        scale = maskgit.noise_scale(step, T, TEMPERATURE)
        for draw in itertools.product(range(V), repeat=len(masked)):
            drawn = dict(zip(masked, draw, strict=True))
            here = p * float(np.exp(sum(logp(state)[n, code] for n, code in drawn.items())))
            if step == T - 1:
                chosen = dict.fromkeys(masked, 1.0)  # all that is left
            else:
                sure = {n: logp(state)[n, drawn[n]] if by == "drawn" else logp(state)[n].max() for n in masked}
                weight = {n: float(np.exp(value / scale)) for n, value in sure.items()}
                chosen = {n: weight[n] / sum(weight.values()) for n in masked}
            for n, share in chosen.items():
                after = tuple(drawn[i] if i == n else code for i, code in enumerate(state))
                visit(after, step + 1, here * share, total + score(state, n, drawn[n]))

    visit((None,) * N, 0, 1.0, np.zeros((N, V)))
    return mean, square


def sampled(by: maskgit.Confidence) -> Array:
    """Scores [IMAGES N V] of what the sampler's steps committed."""
    uniform = torch.rand(IMAGES, T, 2, N, generator=torch.Generator().manual_seed(1)).clamp(2.0**-24, 1 - 2.0**-24)

    def guided(codes_BN: torch.Tensor, masked_BN: torch.Tensor, scored_BN: torch.Tensor) -> torch.Tensor:
        return logp_BNV(codes_BN, masked_BN)[scored_BN].float()

    done = maskgit.denoise(maskgit.begin(uniform), guided, T, TEMPERATURE, confidence=by)
    total, commits = torch.zeros(IMAGES, N, V, dtype=torch.float64), torch.zeros(IMAGES, N, dtype=torch.int64)
    for step in range(T):
        at = maskgit.committed(done.masked_BTN, done.remasked_BN, step, T)
        codes = done.codes_BTN[:, step]
        p = logp_BNV(codes, done.masked_BTN[:, step]).exp()
        total += at[..., None] * (torch.nn.functional.one_hot(codes, V) - p)
        commits += at
    assert bool((commits == 1).all()), "each position is committed once"
    return total.numpy()


def logp_BNV(codes_BN: torch.Tensor, masked_BN: torch.Tensor) -> torch.Tensor:  # noqa: N802
    """`logp` of a batch."""
    held = (torch.where(masked_BN, 0, codes_BN + 1) * torch.arange(1, N + 1)).sum(-1)
    places = 2.0 * torch.arange(N, dtype=torch.float64)[:, None] + 3.0 * torch.arange(V, dtype=torch.float64)
    return (torch.from_numpy(THETA) + torch.sin(held[:, None, None] + places)).log_softmax(-1)


def chi2(scores: Array, mean: Array) -> float:
    """The squared distance of the scores' mean from `mean`, in units of its standard error."""
    flat = scores.reshape(len(scores), -1)
    off = flat.mean(0) - mean.ravel()
    return float(len(flat) * off @ np.linalg.pinv(np.cov(flat.T), rcond=1e-9) @ off)


@pytest.mark.parametrize("by", ["drawn", "max_logp"])
def test_the_sampler_agrees_with_the_enumeration(by: maskgit.Confidence) -> None:
    scores, (mean, square) = sampled(by), expected(by)
    assert chi2(scores, mean) < CHI2_6
    assert float((scores**2).sum((1, 2)).mean()) == pytest.approx(square, rel=0.02)


def test_the_committed_score_has_mean_0_with_max_logp() -> None:
    mean, square = expected("max_logp")
    assert np.abs(mean).max() < 1e-12
    assert square > 1.0
    assert chi2(sampled("max_logp"), np.zeros((N, V))) < CHI2_6


def test_the_committed_score_has_a_mean_with_the_drawn_code() -> None:
    """Of about the size that was measured on the embedded policy: .03 to .12 of the score's square."""
    mean, square = expected("drawn")
    assert 0.02 < float((mean**2).sum()) / square < 0.3
    assert chi2(sampled("drawn"), np.zeros((N, V))) > 100 * CHI2_6


def test_two_independent_halves_show_the_same() -> None:
    """E[score] . E[score'] of two halves, over E |score|^2."""
    for by, low, high in (("max_logp", -3e-4, 3e-4), ("drawn", 0.02, 0.3)):
        scores = sampled(by)  # type: ignore[arg-type]
        first, second = scores[::2].mean(0), scores[1::2].mean(0)
        assert low < float((first * second).sum()) / float((scores**2).sum((1, 2)).mean()) < high
