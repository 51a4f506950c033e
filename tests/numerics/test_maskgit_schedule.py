"""MaskGIT's schedule as in Show-o: published counts, noise scales, and a naive sampler."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.policy.show_o import maskgit


@pytest.mark.parametrize(
    ("after", "count"), [(1, 1023), (5, 1011), (10, 973), (20, 828), (30, 601), (40, 316), (49, 32), (50, 1)]
)
def test_masked_counts_of_1024_positions_in_50_steps(after: int, count: int) -> None:
    assert maskgit.to_remask(1024, 1024, after - 1, 50) == count


def test_schedule_uses_float32_cosine() -> None:
    """At ratio 2/3 the float64 cosine gives 512, the public code's float32 one 511."""
    assert math.floor(1024 * math.cos(math.pi / 2 * 12 / 18)) == 512
    assert maskgit.to_remask(1024, 1024, 11, 18) == 511


def test_masked_counts_at_the_limits() -> None:
    assert maskgit.to_remask(16, 5, 0, 50) == 4  # at least one of the masked is committed
    assert maskgit.to_remask(16, 1, 0, 50) == 1  # and one stays, as in the public code
    assert maskgit.to_remask(1024, 700, 49, 50) == 1


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [
        ("cosine", [63, 60, 57, 51, 45, 37, 29, 19, 10, 1]),
        ("linear", [57, 51, 44, 38, 32, 25, 19, 12, 6, 1]),
        ("quadratic", [51, 40, 31, 23, 16, 10, 5, 2, 1, 1]),
    ],
)
def test_masked_counts_of_64_positions_in_ten_steps(schedule: maskgit.Schedule, counts: list[int]) -> None:
    """64 f(r) by hand, rounded down, at least 1: for "quadratic" .81, .64, .49, .36, .25, .16, .09, .04, .01 and 0."""
    found, masked = [], 64
    for step in range(10):
        masked = maskgit.to_remask(64, masked, step, 10, schedule)
        found.append(masked)
    assert found == counts


@given(st.sampled_from(["cosine", "linear", "quadratic"]), st.integers(1, 300), st.integers(1, 60))
def test_every_schedule_falls_and_commits_all(schedule: maskgit.Schedule, positions: int, steps: int) -> None:
    """Each step commits one position or more as long as two are masked; after the last at most what it drew is left."""
    masked = positions
    for step in range(steps):
        left = maskgit.to_remask(positions, masked, step, steps, schedule)
        assert left < masked or masked == left == 1
        if schedule != "cosine":
            share = 1 - (step + 1) / steps
            assert left <= max(1, positions * share ** (2 if schedule == "quadratic" else 1) + 1e-9)
        masked = left
    assert masked == 1


def test_every_position_is_committed_once() -> None:
    uniform = torch.rand(2, 10, 2, 64, generator=torch.Generator().manual_seed(0)).clamp(2.0**-24, 1 - 2.0**-24)
    for schedule in ("cosine", "linear", "quadratic"):
        done = maskgit.denoise(maskgit.begin(uniform), flat, 10, schedule=schedule)  # type: ignore[arg-type]
        times = sum(maskgit.committed(done.masked_BTN, done.remasked_BN, step, 10).int() for step in range(10))
        assert torch.equal(times, torch.ones(2, 64, dtype=torch.int32))


def test_noise_scale_is_cumulative() -> None:
    assert maskgit.noise_scale(0, 50) == pytest.approx(0.98)
    for steps_done, scale in ((10, 0.30537), (15, 0.068), (20, 0.00721)):
        assert maskgit.noise_scale(steps_done - 1, 50) == pytest.approx(scale, abs=5e-6 if steps_done != 15 else 5e-4)
    assert maskgit.noise_scale(9, 50, start=1.8) == pytest.approx(1.8 * 0.30537, abs=1e-5)
    assert maskgit.noise_scale(49, 50) == 0.0


def flat(codes_BN: torch.Tensor, masked_BN: torch.Tensor, scored_BN: torch.Tensor) -> torch.Tensor:
    return torch.full((int(scored_BN.sum()), 4), math.log(0.25))


def test_33078_of_51200_terms_are_decisions() -> None:
    uniform = torch.rand(1, 50, 2, 1024, generator=torch.Generator().manual_seed(0)).clamp(2.0**-24, 1 - 2.0**-24)
    done = maskgit.denoise(maskgit.begin(uniform), flat, 50)
    assert done.masked_BTN.shape == (1, 50, 1024)
    assert int(done.masked_BTN.sum()) == 33_078
    assert int((~done.masked_BTN[:, 10]).sum()) == 51  # committed at the screening step of 0.2 T
    assert int(done.remasked_BN.sum()) == 1


def table(codes_BN: torch.Tensor, masked_BN: torch.Tensor, scored_BN: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [K 8] that depend on every committed code and its position."""
    batch, positions = codes_BN.shape
    held = torch.where(masked_BN, -1, codes_BN).double()
    weighted = (held * torch.arange(1, positions + 1)).sum(-1)[:, None, None]
    place, code = torch.arange(positions)[None, :, None], torch.arange(8)[None, None, :]
    waves = (2.0 * torch.sin(weighted + 3.0 * place + 5.0 * code)).float().expand(batch, -1, -1)
    return waves.log_softmax(-1)[scored_BN]


def naive(
    uniform: np.ndarray, steps: int, start: float, by: str
) -> tuple[list[list[int]], list[list[bool]], list[list[float]]]:
    """The sampler with Python loops over positions: full draws, masks, log-probabilities."""
    count = uniform.shape[-1]
    codes, masked, scale = [0] * count, [True] * count, start
    draws, masks, logps = [], [], []
    for step in range(steps):
        logp = table(torch.tensor([codes]), torch.tensor([masked]), torch.ones(1, count, dtype=torch.bool)).tolist()
        confidence = []
        for n in range(count):
            if masked[n]:
                probability = [math.exp(value) for value in logp[n]]
                target, reached, code = float(uniform[step, 0, n]) * sum(probability), 0.0, 0
                for code, p in enumerate(probability):  # noqa: B007
                    reached += p
                    if reached >= target:
                        break
                codes[n] = code
            sure = max(logp[n]) if by == "max_logp" else logp[n][codes[n]]
            confidence.append((math.inf if not masked[n] else sure, n))
        scale *= 1 - (step + 1) / steps
        noisy = [c - scale * math.log(-math.log(float(uniform[step, 1, n]))) for c, n in confidence]
        draws.append(list(codes))
        masks.append(list(masked))
        logps.append([logp[n][codes[n]] for n in range(count)])
        left = max(1, min(sum(masked) - 1, math.floor(count * math.cos(math.pi / 2 * (step + 1) / steps))))
        lowest = sorted(range(count), key=lambda n: noisy[n])[:left]
        masked = [n in lowest for n in range(count)]
    return draws, masks, logps


@pytest.mark.parametrize("by", ["drawn", "max_logp"])
@pytest.mark.parametrize("start", [0.0, 1.0, 4.0])
def test_the_sampler_against_a_naive_one(start: float, by: maskgit.Confidence) -> None:
    uniform = torch.rand(5, 10, 2, 37, generator=torch.Generator().manual_seed(1)).clamp(2.0**-24, 1 - 2.0**-24)
    found = maskgit.denoise(maskgit.begin(uniform), table, 10, start, everywhere=True, confidence=by)
    for b in range(5):
        draws, masks, logps = naive(uniform[b].numpy(), 10, start, by)
        assert found.codes_BTN[b].tolist() == draws
        assert found.masked_BTN[b].tolist() == masks
        np.testing.assert_allclose(found.logp_BTN[b].numpy(), logps, atol=1e-6)
