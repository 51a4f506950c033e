"""The flow SDE step against second implementations, a field whose solution is known, and torch's distributions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.policy.flow import sde

MEAN, STD = 0.5, 0.3  # of the exact field
etas = st.sampled_from([0.7, 1.0])
inside = st.floats(0.02, 0.98)
seeds = st.integers(0, 2**32 - 1)


def latents(seed: int, count: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 3, 3, generator=generator, dtype=dtype) for _ in range(count)]


def flow_grpo(x: Tensor, v: Tensor, t: float, t_next: float, eta: float) -> tuple[Tensor, float]:
    """Flow-GRPO's eq. 9, from the paper: s scales the score -(x + (1 - t) v) / t."""
    dt = t - t_next
    s2 = eta**2 * t / (1 - (t_next if t == 1 else t))
    score = -(x + (1 - t) * v) / t
    return x - (v - s2 / 2 * score) * dt, math.sqrt(s2 * dt)


def unirl_zero(x: Tensor, v: Tensor, t: float, t_next: float, eta: float) -> tuple[Tensor, float]:
    """UniRL-Zero's appendix B: add noise up to t + D, then go back to t_next along v."""
    d = eta**2 * (t - t_next) / 2
    inner = t_next if t == 1 else t
    noised = x * (1 - d / (1 - inner))
    return noised + v * (t_next - t - d), math.sqrt(2 * d * t / (1 - inner))


@given(seeds, inside, st.floats(0.01, 0.99), etas)
def test_step_equals_both_papers_forms(seed: int, t: float, share: float, eta: float) -> None:
    x, v, noise = latents(seed)
    t_next = t * share
    taken = sde.step(x.float(), v.float(), t, t_next, eta, noise.float())
    for form in (flow_grpo, unirl_zero):
        mean, std = form(x, v, t, t_next, eta)
        scale = max(1.0, float(mean.abs().max()))  # near t = 1 a long step's mean is large
        assert torch.allclose(taken.mean.double(), mean, rtol=0, atol=1e-6 * scale)
        assert torch.allclose(taken.x.double(), mean + std * noise, rtol=0, atol=1e-6 * (scale + 4 * std))
        assert taken.std == pytest.approx(std, rel=1e-9)
        normal = torch.distributions.Normal(mean, std)
        density = normal.log_prob(mean + std * noise).flatten(1).mean(1)  # type: ignore[no-untyped-call]
        assert taken.logp is not None
        assert torch.allclose(taken.logp.double(), density, rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.7, 1.0])
def test_at_t_1_only_the_std_takes_the_next_time(eta: float) -> None:
    x, v, noise = latents(0)
    taken = sde.step(x, v, 1.0, 0.9, eta, noise)
    mean, std = flow_grpo(x, v, 1.0, 0.9, eta)
    assert torch.allclose(taken.mean, mean, rtol=0, atol=1e-12)
    assert taken.std == pytest.approx(std)
    other, _ = unirl_zero(x, v, 1.0, 0.9, eta)
    assert 0.01 < float((other - mean).abs().max()) < 0.22  # D v, with v up to about 3


def exact_velocity(x: Tensor, t: float) -> Tensor:
    """E[noise - x0 | x] for x0 ~ N(MEAN, STD^2), elementwise."""
    variance = (1 - t) ** 2 * STD**2 + t**2
    return -MEAN + (t - (1 - t) * STD**2) / variance * (x - (1 - t) * MEAN)


def sampled(steps: int, eta: float, form: str = "ours") -> tuple[float, float]:
    """Mean and std of 200,000 samples of the exact field."""
    generator = torch.Generator().manual_seed(steps)
    times = sde.sigmas(steps, 1.0)
    x = torch.randn(1, 200_000, generator=generator)
    for t, t_next in itertools.pairwise(times):
        v, noise = exact_velocity(x, t), torch.randn(x.shape, generator=generator)
        if form == "ours":
            x = sde.step(x, v, t, t_next, eta, noise).x
        else:  # UniRL-Zero's eq. 1 as printed: dt > 0
            dt, inner = t - t_next, t_next if t == 1 else t
            d = eta**2 / 2 * dt
            x = x * (1 - d / (1 - inner)) + v * (dt - d) + math.sqrt(2 * d * t / (1 - inner)) * noise
    return float(x.mean()), float(x.std())


@pytest.mark.parametrize(
    ("steps", "eta", "std"),
    [(10, 0.7, 0.281), (20, 0.7, 0.291), (50, 0.7, 0.298), (10, 0.0, 0.247), (20, 0.0, 0.271), (50, 0.0, 0.288)],
)
def test_a_gaussian_field_is_sampled(steps: int, eta: float, std: float) -> None:
    """Its std is .3; what is missing is the discretisation's."""
    found = sampled(steps, eta)
    assert found[0] == pytest.approx(MEAN, abs=0.01)
    assert found[1] == pytest.approx(std, abs=0.005)


def test_eq_1_as_printed_leaves_the_field() -> None:
    mean, std = sampled(10, 0.7, "printed")
    assert (mean, std) == (pytest.approx(-0.72, abs=0.02), pytest.approx(1.87, abs=0.03))


@given(seeds, inside, st.floats(0.0, 0.99))
def test_eta_to_0_is_the_euler_ode(seed: int, t: float, share: float) -> None:
    x, v, noise = latents(seed)
    euler = x + v * (t * share - t)
    taken = sde.step(x, v, t, t * share, 0.0, noise)
    assert torch.equal(taken.x, euler)
    assert (taken.std, taken.logp) == (0.0, None)
    if t * share > 0:
        near = sde.step(x, v, t, t * share, 1e-6, noise).x
        assert torch.allclose(near, euler, rtol=0, atol=1e-4)


def test_the_last_step_is_euler_at_any_eta() -> None:
    x, v, noise = latents(1)
    taken = sde.step(x, v, 0.25, 0.0, 0.7, noise)
    assert torch.equal(taken.x, x - 0.25 * v)
    assert taken.logp is None
    assert torch.equal(taken.x, sde.clean(x, v, 0.25))  # the last preview is the image


SHIFTED_ONCE = (1.0, 0.9643, 0.9231, 0.875, 0.8182, 0.75, 0.6667, 0.5625, 0.4286, 0.25, 0.0)
SHIFTED_TWICE = (1.0, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.278, 0.0089, 0.0)


def test_both_schedules_are_pinned() -> None:
    assert sde.sigmas(10, 3.0) == pytest.approx(SHIFTED_ONCE, abs=5e-5)
    assert sde.sigmas(10, 3.0, "diffusers") == pytest.approx(SHIFTED_TWICE, abs=5e-5)
    assert sde.sigmas(4, 1.0) == (1.0, 0.75, 0.5, 0.25, 0.0)


@pytest.mark.parametrize("shift", [0.1, 0.2, 0.3, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("schedule", ["once", "diffusers"])
def test_times_are_exactly_from_1_to_0(shift: float, schedule: sde.Schedule) -> None:
    """At a first time of 1 - 2e-16 the noise of an SDE step would be divided by that difference."""
    times = sde.sigmas(10, shift, schedule)
    assert (times[0], times[-1]) == (1.0, 0.0)
    found = [sde.coefficients(t, t_next, 0.7) for t, t_next in itertools.pairwise(times)]
    assert max(one.std for one in found) < 3


def test_sensitivity_is_the_gradient_per_noise() -> None:
    """d logp / d v = -w noise / E; w spans 1 to 25, as pinned (at t = 1 the drift has no D)."""
    x, v, noise = latents(2)
    times, found = SHIFTED_TWICE, []
    for t, t_next in itertools.pairwise(times[:-1]):
        drawn = sde.step(x, v, t, t_next, 0.7, noise).x
        leaf = v.clone().requires_grad_()
        mean, std = sde.transition(x, leaf, t, t_next, 0.7)
        (gradient,) = torch.autograd.grad(sde.log_density(drawn, mean, std).sum(), leaf)
        found.append(sde.sensitivity(t, t_next, 0.7))
        assert torch.allclose(gradient, -found[-1] * noise / noise[0].numel(), atol=1e-12)
    assert found == pytest.approx([0.06, 0.08, 0.13, 0.19, 0.26, 0.37, 0.54, 0.83, 1.49], abs=0.006)


@given(seeds, st.floats(1e-3, 10))
def test_gaussian_kl_equals_torch(seed: int, std: float) -> None:
    mean, reference = latents(seed, 2)
    normals = [torch.distributions.Normal(m, std) for m in (mean, reference)]
    expected = torch.distributions.kl_divergence(*normals).flatten(1).mean(1)
    assert torch.allclose(sde.gaussian_kl(mean, reference, std), expected, rtol=1e-6, atol=1e-12)


@given(seeds, st.floats(-2, 8), st.floats(-2, 8))
def test_guidance_of_edits_and_prompts(seed: int, g_ref: float, g: float) -> None:
    u, r, c = latents(seed)
    zero = torch.zeros_like(u)
    assert torch.allclose(sde.guided_edit(u, u, c, g_ref, g), sde.guided(u, c, g))
    assert torch.allclose(sde.guided_edit(u, r, r, g_ref, g), sde.guided(u, r, g_ref))
    assert torch.allclose(sde.guided_edit(u, r, c, g_ref, g), (1 - g_ref) * u + (g_ref - g) * r + g * c, atol=1e-9)
    assert torch.equal(sde.guided(zero, c, 1.0), c)
    assert torch.allclose(sde.guided(u, c, 1.0), c)


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_bfloat16_velocities_are_finite(guidance: float) -> None:
    """Also in the narrowest step, where bfloat16 would lose the noise to rounding."""
    x, u, c = latents(3, dtype=torch.float32)
    noise = latents(4, 1, dtype=torch.float32)[0]
    for t, t_next in [(1.0, 0.9601), (0.278, 0.0089), (0.0089, 0.0045)]:
        exact = sde.step(x, sde.guided(u, c, guidance), t, t_next, 0.7, noise)
        taken = sde.step(x, sde.guided(u.bfloat16(), c.bfloat16(), guidance), t, t_next, 0.7, noise)
        assert taken.x.dtype == torch.float32
        assert taken.logp is not None
        assert exact.logp is not None
        assert torch.isfinite(taken.logp).all()
        assert torch.allclose(taken.logp, exact.logp, atol=1e-5)
        velocity = sde.guided(u.bfloat16(), c.bfloat16(), guidance)
        scored = sde.log_density(exact.x, *sde.transition(x, velocity, t, t_next, 0.7))
        assert torch.allclose(scored, exact.logp, atol=1e-2)
    low = sde.step(x.bfloat16(), c.bfloat16(), 0.5, 0.4, 0.7, noise.bfloat16())
    assert low.x.dtype == torch.float32


@pytest.mark.parametrize("window", [(0, 9), (5, 12), (-1, 3), (4, 3)])
def test_a_window_with_the_last_step_is_refused(window: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"SDE steps {window[0]} to {window[1]} do not fit 10 sampling steps"):
        sde.decisions(10, window)


def test_windows_include_both_ends() -> None:
    assert list(sde.decisions(10)) == list(range(9))
    assert list(sde.decisions(10, (2, 8))) == list(range(2, 9))
    with pytest.raises(ValueError, match="1 sampling steps"):
        sde.decisions(1)


@pytest.mark.parametrize(("t", "t_next", "eta"), [(0.5, 0.6, 0.7), (0.5, 0.5, 0.7), (1.1, 0.5, 0.7), (0.5, 0.4, -1.0)])
def test_steps_out_of_range_are_refused(t: float, t_next: float, eta: float) -> None:
    with pytest.raises(ValueError, match="give 1 >= t > t_next >= 0 and eta >= 0"):
        sde.coefficients(t, t_next, eta)


def test_euler_steps_have_no_sensitivity() -> None:
    with pytest.raises(ValueError, match="Euler step"):
        sde.sensitivity(0.25, 0.0, 0.7)


@pytest.mark.parametrize(("steps", "shift"), [(0, 3.0), (10, 0.0), (10, math.inf)])
def test_schedules_out_of_range_are_refused(steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match="at least one step and a positive shift"):
        sde.sigmas(steps, shift)
