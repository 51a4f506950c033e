"""Latent segments: noise, resuming, log-probabilities of the sampler and the learner, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.trainer.flow_toy import SHAPE, FlowToy
from trainer.policy.base import Policy
from trainer.policy.flow import sde
from trainer.policy.flow.segments import LatentSegment, Sampler, normals
from trainer.types import Condition, Seed

STEPS, GROUP = 6, 4
SEEDS: list[Seed] = [(7, 0, 0, place) for place in range(GROUP)]
TEN: dict[str, Any] = {"steps": STEPS, "shift": 3.0, "eta": 0.7}


def drawn(policy: FlowToy, until: int = STEPS, prompts: tuple[str, ...] = ("a", "b", "c", "d")) -> list[LatentSegment]:
    return policy.denoise(policy.start(prompts, SEEDS), until)


def log_ratios(policy: FlowToy, segments: list[LatentSegment]) -> Tensor:
    """new - old [K B] of every decision."""
    terms = [policy.terms(segments, k) for k in range(policy.steps(segments))]
    assert all(bool(found.mask_BD.all()) for found in terms)
    return torch.stack([(found.new_BD - found.old_BD)[:, 0] for found in terms])


def test_the_toy_is_a_policy() -> None:
    policy: Policy = FlowToy(Sampler.of(**TEN))
    assert policy.image_steps == STEPS


@pytest.mark.parametrize("schedule", ["once", "diffusers"])
@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_sampler_equals_learner(schedule: sde.Schedule, guidance: float) -> None:
    policy = FlowToy(Sampler.of(**TEN, schedule=schedule), guidance)
    segments = drawn(policy)
    assert float(log_ratios(policy, segments).abs().max().detach()) == 0.0
    alone = torch.cat([log_ratios(policy, [segment]) for segment in segments], 1)
    assert float(alone.abs().max().detach()) <= 1e-4


def test_another_guidance_in_the_learner_is_seen() -> None:
    """UniRL's edit trainer samples at 3.0 and learns at 3.5; with a clip range of 1e-4 most of A < 0 would be flat."""
    policy = FlowToy(Sampler.of(**TEN), guidance=3.0, learner_guidance=3.5)
    ratios = log_ratios(policy, drawn(policy)).exp()
    assert float((ratios - 1).abs().max().detach()) > 1e-3
    assert float((ratios < 1 - 1e-4).float().mean()) > 0.5


def test_a_segment_resumes_bit_for_bit() -> None:
    policy = FlowToy(Sampler.of(**TEN))
    whole = drawn(policy)
    for until in range(STEPS):
        resumed = policy.denoise(drawn(policy, until), STEPS)
        for a, b in zip(whole, resumed, strict=True):
            assert torch.equal(a.latent_SCHW, b.latent_SCHW)
            assert torch.equal(a.logp_S, b.logp_S)
            assert torch.equal(a.clean_CHW, b.clean_CHW)


def test_a_segment_has_what_it_says() -> None:
    policy = FlowToy(Sampler.of(**TEN, window=(1, 3)))
    (begun, *_), (half, *_), (done, *_) = (drawn(policy, until) for until in (0, 3, STEPS))
    assert (begun.step, half.step, done.step, done.kind, done.prompt) == (0, 3, STEPS, "image", "a")
    assert [tuple(s.latent_SCHW.shape) for s in (begun, half, done)] == [(n, *SHAPE) for n in (1, 4, STEPS + 1)]
    assert [len(s.noise_RCHW) for s in (begun, half, done)] == [STEPS, STEPS - 3, 0]
    assert torch.equal(done.clean_CHW, done.latent_SCHW[-1])
    assert [bool(logp) for logp in done.logp_S] == [False, True, True, True, False, False]
    assert policy.sampler.decisions == (1, 2, 3)
    assert policy.decisions("image") == policy.steps([done]) == 3


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 3), st.integers(1, 8))
def test_noise_differs_between_rollouts_and_steps(seed: int, step: int, group: int, size: int) -> None:
    keys = [(seed, step, group, place) for place in range(size)] + [(seed, step, group + 1, 0)]
    noise = normals(keys, 1, (STEPS + 1, *SHAPE))
    rows = [row for rollout in noise for row in rollout]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(rows, 2))
    assert torch.equal(noise[0], normals(keys[:1], 1, (STEPS + 1, *SHAPE))[0])
    assert not torch.equal(noise, normals(keys, 2, (STEPS + 1, *SHAPE)))


def test_equal_prompts_of_a_group_get_different_noise() -> None:
    """UniRL#89: with the noise of a step shared by its group, rewards fell after 100 rollouts."""
    policy = FlowToy(Sampler.of(**TEN))
    group = drawn(policy, prompts=("a",) * GROUP)
    for a, b in itertools.combinations(group, 2):
        for step in policy.sampler.decisions:
            found = []
            for segment in (a, b):
                x, after = segment.latent_SCHW[step : step + 1], segment.latent_SCHW[step + 1]
                velocity = policy._guided([segment], step, policy.guidance)
                times = policy.sampler.times[step : step + 2]
                mean, std = sde.transition(x, velocity, times[0], times[1], 0.7)
                found.append((after - mean[0]).detach() / std)
            assert float((found[0] - found[1]).abs().min()) > 1e-3


def test_normals_are_standard() -> None:
    noise = normals([(0, 0, 0, place) for place in range(50)], 1, (1000,))
    assert noise.dtype == torch.float32
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)


def test_the_closed_kl_is_the_gaussians() -> None:
    policy = FlowToy(Sampler.of(**TEN))
    policy.keep_reference()
    segments = drawn(policy)
    equal = policy.terms(segments, 2, reference=True)
    assert equal.kl_BD is not None
    assert torch.count_nonzero(equal.kl_BD) == 0
    with torch.no_grad():
        policy.velocity.of_t += 0.1
    moved = policy.terms(segments, 2, reference=True)
    assert moved.kl_BD is not None
    shift = 0.1 * policy.sampler.time(2)  # of every velocity, at any guidance
    assert moved.kl_BD[:, 0].tolist() == pytest.approx([(moved.sensitivity * shift) ** 2 / 2] * GROUP, rel=1e-4)


def test_eta_0_is_the_ode_without_decisions() -> None:
    sampler = Sampler.of(STEPS, 3.0, 0.0)
    policy = FlowToy(sampler)
    segments = drawn(policy)
    assert sampler.decisions == ()
    assert all(not bool(segment.logp_S.any()) for segment in segments)
    x, v = segments[0].latent_SCHW, policy._guided(segments, 2, 3.0)[0].detach()
    assert torch.allclose(x[3], x[2] + v * (sampler.times[3] - sampler.times[2]))


def test_terms_of_an_euler_step_are_refused() -> None:
    policy = FlowToy(Sampler.of(**TEN))
    segments = drawn(policy)
    velocity = torch.zeros(GROUP, *SHAPE)
    with pytest.raises(ValueError, match="is an Euler step"):
        policy.sampler.terms(segments, STEPS - 1, velocity)


def test_windows_that_reach_the_last_step_are_refused() -> None:
    with pytest.raises(ValueError, match=f"give a window within 0 to {STEPS - 2}"):
        Sampler.of(**TEN, window=(2, STEPS - 1))


def test_noise_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"give \[1, 7, C, H, W\] for 6 sampling steps"):
        Sampler.of(**TEN).start([Condition("a")], torch.zeros(1, STEPS, *SHAPE))


def test_the_ratio_leaves_1_after_an_update() -> None:
    """A ratio that is always 1 would be a learner that reads what the sampler wrote down."""
    policy = FlowToy(Sampler.of(**TEN))
    segments = drawn(policy)
    optimizer = torch.optim.SGD(policy.velocity.parameters(), lr=0.1)
    before = log_ratios(policy, segments)
    (-before.sum()).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    after = log_ratios(policy, segments).detach()
    assert float(after.abs().min()) > 0
    assert float(after.sum()) > 0  # the gradient of the log-probability raises it
