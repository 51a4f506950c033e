"""Signal and noise of a gradient, estimated from the gradients of groups that were drawn independently. Pure.

g_1, ..., g_n are the gradients of n groups, S their sum and Q = sum |g_i|^2. Over groups, which differ by prompt and by
draw, E and Cov are those of one g:

    |E g|^2 ~ (|S|^2 - Q) / (n (n - 1))          the mean product of two different groups
    tr Cov  ~ Q / n - |E g|^2                    both without bias

Their ratio is the signal-to-noise ratio of one group; a step of k groups has k times as much. An estimate of |E g|^2
may be negative. Suffixes: N groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SPLITS = 100  # of the groups into halves, drawn once


@dataclass(frozen=True, slots=True)
class GradientNoise:
    """Estimates from n groups, each with its standard error (jackknife over groups).

    signal  |E g|^2; its square root is the length of the expected gradient
    noise   tr Cov g
    ratio   signal / noise of one group
    cosine  mean cosine between the gradients of two halves of the groups
    """

    groups: int
    signal: float
    signal_error: float
    noise: float
    noise_error: float
    ratio: float
    ratio_error: float
    cosine: float
    cosine_error: float


def pair_cosine(total_square: float, squares: float, count: int) -> float | None:
    """Return the mean product of two different gradients over the mean square of one: ratio / (1 + ratio) of a group.

    `total_square` is |S|^2, `squares` is Q. In [-1 / (n - 1), 1]; None below two gradients, and if all are 0.
    """
    if count < 2 or squares <= 0:
        return None
    return (total_square - squares) / ((count - 1) * squares)


def gradient_noise(gram_NN: Tensor) -> GradientNoise:
    """Return the estimates from the products g_i . g_j of at least four gradients, any dtype.

    Raises ValueError for fewer, for another shape, and for products that are not finite.
    """
    count = len(gram_NN)
    if gram_NN.shape != (count, count) or count < 4 or not bool(torch.isfinite(gram_NN).all()):
        raise ValueError(
            f"the products of gradients are {list(gram_NN.shape)}, finite: {bool(torch.isfinite(gram_NN).all())}; give "
            "a square of finite numbers of at least four groups"
        )
    gram_NN = gram_NN.double()
    everything = torch.arange(count)
    whole = _moments(gram_NN, everything)
    without = [_moments(gram_NN, everything[everything != i]) for i in range(count)]
    halves = _halves(count)
    cosine = _cosine(gram_NN, halves)
    cosines = [_cosine(gram_NN, halves & (everything != i), (~halves) & (everything != i)) for i in range(count)]
    signal, noise = whole
    return GradientNoise(
        count,
        signal,
        _jackknife([one[0] for one in without]),
        noise,
        _jackknife([one[1] for one in without]),
        _ratio(whole),
        _jackknife([_ratio(one) for one in without]),
        cosine,
        _jackknife(cosines),
    )


def _moments(gram_NN: Tensor, chosen: Tensor) -> tuple[float, float]:
    """Return (signal, noise) of the chosen groups."""
    own_NN, count = gram_NN[chosen][:, chosen], len(chosen)
    squares = float(own_NN.diagonal().sum())
    signal = (float(own_NN.sum()) - squares) / (count * (count - 1))
    return signal, squares / count - signal


def _ratio(moments: tuple[float, float]) -> float:
    signal, noise = moments
    return signal / noise if noise > 0 else math.inf


def _halves(count: int) -> Tensor:
    """Return bool [SPLITS N], True for one half of the groups."""
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(count, generator=generator) for _ in range(SPLITS)])
    return orders < count // 2


def _cosine(gram_NN: Tensor, first_MN: Tensor, second_MN: Tensor | None = None) -> float:
    """Return the mean over splits of the cosine between the sums of both halves; a half that is 0 counts as 0."""
    first, second = first_MN.double(), (~first_MN if second_MN is None else second_MN).double()
    product = ((first @ gram_NN) * second).sum(1)
    norms = (((first @ gram_NN) * first).sum(1) * ((second @ gram_NN) * second).sum(1)).clamp(min=0).sqrt()
    return float((product / norms.clamp(min=torch.finfo(torch.float64).tiny)).mean())


def _jackknife(values: list[float]) -> float:
    """Return the standard error from the estimates without one group each."""
    found = torch.tensor(values, dtype=torch.float64)
    return math.sqrt((len(found) - 1) * float((found - found.mean()).square().mean()))
