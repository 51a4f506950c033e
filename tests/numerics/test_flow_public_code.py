"""Our flow maths against recorded values of flow_grpo's and UniRL's code and of diffusers' scheduler.

`flow_public_values.json` names the files, lines and commits that the values are from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.algorithms.advantage import step_advantages
from trainer.algorithms.aggregate import GroupRewards
from trainer.policy.flow import sde

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "flow_public_values.json").read_text())
TIMES = sde.sigmas(10, 3.0, "diffusers")


def latent(values: list[float]) -> Tensor:
    return torch.tensor(values).reshape(2, 1, 2, 2)


def name(case: dict[str, Any]) -> str:
    return f"{case['code']}-{case['step']}-{case['eta']}"


@pytest.mark.parametrize("case", RECORDED["schedules"], ids=lambda case: f"{case['shift']}-{case['steps']}")
def test_times_equal_diffusers(case: dict[str, Any]) -> None:
    assert sde.sigmas(case["steps"], case["shift"], "diffusers") == pytest.approx(case["sigmas"], abs=2e-7)


SAME = [case for case in RECORDED["steps"] if case["code"] != "unirl_simple" or case["step"] > 0]


@pytest.mark.parametrize("case", SAME, ids=name)
def test_steps_equal_the_public_code(case: dict[str, Any]) -> None:
    times = TIMES[case["step"]], TIMES[case["step"] + 1]
    x, velocity, reference = (latent(RECORDED[field]) for field in ("x", "velocity", "reference_velocity"))
    taken = sde.step(x, velocity, *times, case["eta"], latent(case["noise"]))
    assert torch.allclose(taken.mean, latent(case["mean"]), rtol=0, atol=2e-6)
    assert torch.allclose(taken.x, latent(case["x_next"]), rtol=0, atol=2e-6)
    assert taken.std == pytest.approx(case["std"], rel=1e-5)
    assert taken.logp is not None
    assert taken.logp.tolist() == pytest.approx(case["logp"], abs=1e-5)
    other = sde.transition(x, reference, *times, case["eta"])
    scored = sde.log_density(latent(case["x_next"]), *other)
    assert scored.tolist() == pytest.approx(case["reference_logp"], rel=1e-4)
    kl = sde.gaussian_kl(taken.mean, other.mean, taken.std)
    if case["code"] == "flow_grpo":  # its standard deviation lacks sqrt(|dt|), so its KL is |dt| times ours
        kl = kl * (times[0] - times[1])
    assert kl.tolist() == pytest.approx(case["kl"], rel=1e-4, abs=1e-7)


def test_unirls_listing_differs_at_t_1_only() -> None:
    """Its drift takes the next time too; Flow-GRPO's, which UniRL trains with, does not."""
    (case,) = [case for case in RECORDED["steps"] if case["code"] == "unirl_simple" and case["step"] == 0]
    x, velocity = latent(RECORDED["x"]), latent(RECORDED["velocity"])
    mean, std = sde.transition(x, velocity, TIMES[0], TIMES[1], case["eta"])
    noise_share = (TIMES[0] - TIMES[1]) / 2  # D
    assert std == pytest.approx(case["std"], rel=1e-5)
    assert torch.allclose(mean - noise_share * velocity, latent(case["mean"]), rtol=0, atol=2e-6)
    assert noise_share > 0.01


@pytest.mark.parametrize(("code", "factor"), [("unirl", 1.0), ("flow_grpo", (7 / 8) ** 0.5)])
def test_advantages_equal_the_public_code(code: str, factor: float) -> None:
    """flow_grpo divides by the biased deviation, and each adds 1e-4 to its own."""
    rewards = torch.tensor(RECORDED["advantages"]["rewards"], dtype=torch.float64)
    group = GroupRewards(rewards[:, None], torch.ones(8, dtype=torch.bool), (1.0,))
    (advantage,) = step_advantages([group], normalise="group_std", epsilon=1e-4 / factor)
    assert (advantage / factor).tolist() == pytest.approx(RECORDED["advantages"][code], abs=1e-5)
