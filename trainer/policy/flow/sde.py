"""Sampling a flow-matching model: schedules, guidance, the SDE step and its log-probability. Pure.

x_t = (1 - t) x_0 + t noise, t from 1 (noise) to 0 (image); the model predicts v = noise - x_0. Suffixes: B rollouts,
E elements of a latent, whatever its dimensions.

The step is Flow-GRPO's (arXiv 2505.05470, eq. 9), the Euler-Maruyama step of an SDE with the ODE's marginals:

    x' = x + v dt - (s^2 |dt| / 2) (x + (1 - t) v) / t + s sqrt(|dt|) noise,   dt = t' - t < 0
    s^2 = eta^2 t / (1 - t)

With D = eta^2 |dt| / 2 it is UniRL-Zero's (arXiv 2510.17937, appendix B) for every t < 1:

    x' = x (1 - D / (1 - t)) + v (dt - D) + sqrt(2 D t / (1 - t)) noise

Deviations, each with its reason:

* UniRL-Zero's eq. 1 has dt > 0 and the drift v (dt - D), which goes from image to noise. dt is negative here, as in
  its listing. D = eta dt there: its eta .5 is 1 here.
* At t = 1 the standard deviation is infinite. As in Flow-GRPO's code, s takes the next t there, and only s does: the
  drift keeps t = 1. In UniRL-Zero's listing the drift of v takes it too, which moves the mean off the SDE's.
* The last step is an Euler step without a decision: the density of a step that ends at t = 0 is arbitrarily narrow.
* Log-probabilities are means over elements, as in both. So a ratio is that of a tempered likelihood, and a clip range
  does not depend on the number of elements.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Schedule = Literal["once", "diffusers"]
TRAINING_TIMES = 1000  # the number of times in diffusers' schedulers


class Transition(NamedTuple):
    """x' ~ N(mean, std^2). mean [B ...] float32 or better; std 0 in an Euler step, which decides nothing."""

    mean: Tensor
    std: float


class Step(NamedTuple):
    """A sampled step: x and mean [B ...], std, and logp [B], None in an Euler step."""

    x: Tensor
    mean: Tensor
    std: float
    logp: Tensor | None


class Coefficients(NamedTuple):
    """x' ~ N(x * of_x + v * of_v, std^2)."""

    of_x: float
    of_v: float
    std: float


def sigmas(steps: int, shift: float, schedule: Schedule = "once") -> tuple[float, ...]:
    """Return the times t of `steps` sampling steps, from 1 down to 0; `steps` + 1 numbers.

    "once": equal steps u, shifted to t = shift u / (1 + (shift - 1) u). "diffusers": the times of diffusers'
    FlowMatchEulerDiscreteScheduler, which shifts the end of its range before it shifts the range, so that the last step
    is tiny and the one before it huge (diffusers#13243). Models were often evaluated with it.

    Raises ValueError for less than one step or a shift that is not positive.
    """
    if steps < 1 or not shift > 0 or not math.isfinite(shift):
        raise ValueError(f"{steps} steps with shift {shift}; give at least one step and a positive shift, 1 for none")
    if schedule == "once":
        return tuple(_shifted(1 - k / steps, shift) for k in range(steps + 1))
    low = _shifted(1 / TRAINING_TIMES, shift)
    return (*(_shifted(1 - k / max(1, steps - 1) * (1 - low), shift) for k in range(steps)), 0.0)


def decisions(steps: int, window: tuple[int, int] | None = None) -> range:
    """Return the steps (from 0) that are SDE steps: first to last of the window, both included; None: all but the last.

    Raises ValueError for a window that is empty or reaches the last step, which has no density.
    """
    first, last = (0, steps - 2) if window is None else window
    if not 0 <= first <= last <= steps - 2:
        raise ValueError(
            f"the SDE steps {first} to {last} do not fit {steps} sampling steps, because the last step has no density; "
            f"give a window within 0 to {steps - 2}"
        )
    return range(first, last + 1)


def guided(u: Tensor, c: Tensor, g: float) -> Tensor:
    """Return the velocity u + g (c - u) [B ...] from those without and with the prompt; g = 1 is c."""
    u, c = _exact(u), _exact(c)
    return u + g * (c - u)


def guided_edit(u: Tensor, r: Tensor, c: Tensor, g_ref: float, g: float) -> Tensor:
    """Return the velocity u + g_ref (r - u) + g (c - r): without prompt and source, with the source, with both."""
    u, r, c = _exact(u), _exact(r), _exact(c)
    return u + g_ref * (r - u) + g * (c - r)


def coefficients(t: float, t_next: float, eta: float) -> Coefficients:
    """Return the coefficients of a step from t to t_next < t, both in [0, 1]; t_next 0 and eta 0 are Euler steps.

    Raises ValueError for times out of range and a negative eta.
    """
    if not 0 <= t_next < t <= 1 or not eta >= 0:
        raise ValueError(f"the step goes from {t} to {t_next} with eta {eta}; give 1 >= t > t_next >= 0 and eta >= 0")
    dt = t_next - t
    if t_next == 0 or eta == 0:
        return Coefficients(1.0, dt, 0.0)
    variance = eta**2 * t / (1 - (t if t < 1 else t_next)) * -dt
    return Coefficients(1 - variance / (2 * t), dt - variance * (1 - t) / (2 * t), math.sqrt(variance))


def sensitivity(t: float, t_next: float, eta: float) -> float:
    """Return w = |d mean / d v| / std of an SDE step: how much its log-ratio grows with a change of the velocity.

    With noise at hand, d logp / d v = -w noise / E. Over one schedule w varies by 25 to 1 (UniRL-Zero's settings), so
    the early steps, which fix the layout, have the smallest gradients. Raises ValueError for an Euler step.
    """
    _, of_v, std = coefficients(t, t_next, eta)
    if std == 0:
        raise ValueError(f"the step from {t} to {t_next} with eta {eta} is an Euler step, which has no log-probability")
    return abs(of_v) / std


def transition(x: Tensor, v: Tensor, t: float, t_next: float, eta: float) -> Transition:
    """Return the distribution of x' given x and the velocity v, both [B ...]."""
    of_x, of_v, std = coefficients(t, t_next, eta)
    return Transition(of_x * _exact(x) + of_v * _exact(v), std)


def step(x: Tensor, v: Tensor, t: float, t_next: float, eta: float, noise: Tensor) -> Step:
    """Sample x' = mean + std noise from t to t_next, with the given standard normal noise [B ...].

    Computed in float32, or in float64 if given; see the top for the formula. `noise` is not read in an Euler step.
    """
    mean, std = transition(x, v, t, t_next, eta)
    if std == 0:
        return Step(mean, mean, std, None)
    drawn = mean + std * _exact(noise)
    return Step(drawn, mean, std, log_density(drawn, mean, std))


def log_density(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """Return the mean over elements of log N(x; mean, std^2), [B]; x and mean are [B ...], std > 0."""
    deviation = ((_exact(x) - _exact(mean)) / std).flatten(1)
    return -0.5 * deviation.square().mean(1) - math.log(std) - 0.5 * math.log(2 * math.pi)


def gaussian_kl(mean: Tensor, reference: Tensor, std: float) -> Tensor:
    """Return the mean over elements of KL(N(mean, std^2) || N(reference, std^2)), [B]; the means are [B ...].

    It is mean_E((mean - reference)^2) / (2 std^2), which grows with the square of `sensitivity`: the same change of the
    velocity costs most in the last steps.
    """
    return ((_exact(mean) - _exact(reference)) / std).flatten(1).square().mean(1) / 2


def clean(x: Tensor, v: Tensor, t: float) -> Tensor:
    """Return the prediction of the image from time t, x - t v [B ...]: the preview."""
    return _exact(x) - t * _exact(v)


def _shifted(u: float, shift: float) -> float:
    """Return the shifted time; 1 is exactly 1, which the formula misses by rounding for some shifts below .5."""
    return 1.0 if u == 1 else shift * u / (1 + (shift - 1) * u)


def _exact(x: Tensor) -> Tensor:
    """Return x in float32 or better: in bfloat16 a step's mean and its noise would round to the same number."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
