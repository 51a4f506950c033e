"""MaskGIT sampling (Chang et al. 2022) as in Show-o, resumable after any step.

Suffixes: B images, T steps, N positions, V codes, K scored positions of all images in row-major order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Guided = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(codes_BN, masked_BN, scored_BN) -> guided log-probabilities [K V] of the next draw at the scored positions."""
Confidence = Literal["drawn", "max_logp"]
"""What decides which positions a step commits, besides noise: log p of the drawn code, or of the likeliest one."""
Schedule = Literal["cosine", "linear", "quadratic"]
"""The share of positions that is still masked at r = t / T: cos(pi/2 r), 1 - r, or (1 - r)^2."""


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """B images after the same number of steps t, the size of T in the first three fields.

    codes_BTN    int64, the full draw of each step
    masked_BTN   bool, the positions that were masked when step t sampled
    logp_BTN     log-probabilities of the codes under the guided distribution; 0 where they were not scored
    remasked_BN  bool, the positions masked for the next step
    uniform_BT2N in (0, 1): [draw, confidence noise] of every step
    """

    codes_BTN: Tensor
    masked_BTN: Tensor
    logp_BTN: Tensor
    remasked_BN: Tensor
    uniform_BT2N: Tensor

    @property
    def step(self) -> int:
        return self.codes_BTN.shape[1]


def begin(uniform_BT2N: Tensor) -> State:
    """Return the state before the first step: every position is masked."""
    batch, _, _, positions = uniform_BT2N.shape
    empty = uniform_BT2N.new_zeros((batch, 0, positions))
    masked = torch.ones((batch, positions), dtype=torch.bool, device=empty.device)
    return State(empty.long(), empty.bool(), empty.float(), masked, uniform_BT2N)


def denoise(
    state: State,
    guided: Guided,
    until: int,
    temperature: float = 1.0,
    *,
    everywhere: bool = False,
    confidence: Confidence = "drawn",
    schedule: Schedule = "cosine",
) -> State:
    """Denoise up to step `until` (at most T); the state keeps what the last step re-masked.

    Log-probabilities are recorded at masked positions, or `everywhere`.
    """
    while state.step < until:
        state = _step(state, guided, temperature, everywhere, confidence, schedule)
    return state


def committed(masked_BTN: Tensor, remasked_BN: Tensor, step: int, steps: int) -> Tensor:
    """Return the positions [B N] that `step` sampled and that no later step of all `steps` samples again.

    The last step commits all that it sampled, also what it re-masks: nothing draws that again. Over all steps every
    position is committed once.
    """
    masked_BN = masked_BTN[:, step]
    if step + 1 == steps:
        return masked_BN
    return masked_BN & ~(masked_BTN[:, step + 1] if step + 1 < masked_BTN.shape[1] else remasked_BN)


def to_remask(positions: int, masked: int, step: int, steps: int, schedule: Schedule = "cosine") -> int:
    """Return how many of N `positions` stay masked after `step` in [0, steps).

    max(1, min(masked - 1, floor(N f(r)))) with r = (step + 1) / steps and f the schedule. The cosine is float32 as in
    the public code (in float64 one count differs, at r = 2/3); the others are exact.
    """
    left = steps - step - 1
    if schedule == "linear":
        wanted = positions * left // steps
    elif schedule == "quadratic":
        wanted = positions * left**2 // steps**2
    else:
        ratio = torch.tensor((step + 1) / steps, dtype=torch.float32)
        wanted = int(torch.floor(positions * torch.cos(ratio * (math.pi * 0.5))))
    return max(1, min(masked - 1, wanted))


def noise_scale(step: int, steps: int, start: float = 1.0) -> float:
    """Return the confidence noise's scale in `step`: t_k = t_{k-1} (1 - (k + 1) / T), from `start`."""
    return start * math.prod(1.0 - (k + 1) / steps for k in range(step + 1))


def draw(logp_KV: Tensor, uniform_K: Tensor) -> Tensor:
    """Sample one code for each position by inversion of the distribution function: int64 [K]."""
    reached = logp_KV.exp().cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(reached, (uniform_K.double() * reached[:, -1])[:, None]).squeeze(-1)


def at_positions(values_K: Tensor, positions_BN: Tensor) -> Tensor:
    """Return [B N] with the values at the True positions, in row-major order, and 0 at the others."""
    return values_K.new_zeros(positions_BN.shape).masked_scatter(positions_BN, values_K)


def _step(
    state: State, guided: Guided, temperature: float, everywhere: bool, by: Confidence, schedule: Schedule
) -> State:
    step, steps = state.step, state.uniform_BT2N.shape[1]
    masked = state.remasked_BN
    held = state.codes_BTN[:, -1] if step else torch.zeros_like(masked, dtype=torch.long)
    scored = torch.ones_like(masked) if everywhere else masked
    logp_KV = guided(held, masked, scored)
    choice, noise = state.uniform_BT2N[:, step].unbind(1)
    codes = torch.where(masked, at_positions(draw(logp_KV, choice[scored]), scored), held)
    logp = at_positions(logp_KV.gather(-1, codes[scored][:, None]).squeeze(-1), scored)
    gumbel = -torch.log(-torch.log(noise.double()))
    sure = logp if by == "drawn" else at_positions(logp_KV.amax(-1), scored)
    confidence = sure.double() + noise_scale(step, steps, temperature) * gumbel
    confidence = confidence.masked_fill(~masked, math.inf)  # committed positions stay
    count = to_remask(masked.shape[1], int(masked[0].sum()), step, steps, schedule)
    lowest = confidence.argsort(dim=-1, stable=True)[:, :count]
    return replace(
        state,
        codes_BTN=torch.cat((state.codes_BTN, codes[:, None]), 1),
        masked_BTN=torch.cat((state.masked_BTN, masked[:, None]), 1),
        logp_BTN=torch.cat((state.logp_BTN, logp[:, None].float()), 1),
        remasked_BN=torch.zeros_like(masked).scatter(1, lowest, True),
    )
