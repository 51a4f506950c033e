"""The gradient meter: the products of whole gradients of groups, a sample of large ones, groups without a text."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.gradient_snr import _gradients, family, measure
from tests.unit.trainer.loops import NO_SLOPES, MakeSettings, draw
from tests.unit.trainer.reward_services import Judge
from trainer.gradient_meter import SAMPLE, GradientMeter, _stride
from trainer.optim import make_optimizer
from trainer.policy.show_o.policy import ShowO
from trainer.settings import TrainerSettings
from trainer.types import Reward
from trainer.update import policy_update

STILL = {"OPTIMIZER__LR": "1e-30", "LOSS__TEXT__BETA": "0", "LOSS__IMAGE__BETA": "0"}


@pytest.fixture
def settings(tiny_settings: MakeSettings) -> TrainerSettings:
    """Of four groups a step, with and without text."""
    return tiny_settings(PROMPTS_PER_STEP="4", DATA__GENEVAL_SHARE="0.25", SCREEN__THRESHOLD="none", **STILL)


def test_an_update_reports_how_much_its_groups_agree(policy: ShowO, settings: TrainerSettings) -> None:
    """Against the gradient of each group alone; groups without a text do not count for texts."""
    groups, _ = draw(policy, Judge(), settings)
    values = [(0.5, 1.0, 0.0, 0.25), (0.25, 0.75, 1.0, 0.0), (1.0, 0.5, 0.5, 0.0), (0.0, 0.0, 0.25, 1.0)]
    scored = [replace(group, rewards=tuple(map(Reward, own))) for group, own in zip(groups, values, strict=True)]
    assert {len(group.rollouts[0].segments) for group in scored} == {1, 2}
    found = policy_update(policy, make_optimizer(policy, settings), scored, NO_SLOPES, settings, 0)
    alone = [_gradients(policy, group, settings, 0) for group in scored]
    for modality in ("text", "image"):
        gradients = [one[modality]["all"].double() for one in alone if modality in one]
        pairs = [float(a @ b) for i, a in enumerate(gradients) for b in gradients[:i]]
        mean_square = sum(float(a @ a) for a in gradients) / len(gradients)
        expected = sum(pairs) / len(pairs) / mean_square
        assert abs(expected) > 1e-3
        assert found.cosines[modality] == pytest.approx(expected, rel=1e-3)


def test_one_group_has_nothing_to_agree_with(policy: ShowO, settings: TrainerSettings) -> None:
    groups, _ = draw(policy, Judge(), settings)
    found = policy_update(policy, make_optimizer(policy, settings), groups[:1], NO_SLOPES, settings, 0)
    assert found.cosines == {"text": None, "image": None}


def test_a_large_parameter_is_sampled_in_all_columns() -> None:
    """Two random gradients of known cosine, at 2 % of their numbers; the sample's square stands for the whole."""
    generator = torch.Generator().manual_seed(0)
    parameter, frozen = nn.Parameter(torch.zeros(4096, 192)), nn.Parameter(torch.zeros(9), requires_grad=False)
    assert {i % 192 for i in range(0, parameter.numel(), _stride(parameter))} == set(range(192))
    assert SAMPLE / 1.2 < parameter.numel() / _stride(parameter) <= SAMPLE
    common, one, two = (torch.randn(parameter.shape, generator=generator) for _ in range(3))
    meter = GradientMeter([parameter, frozen])
    for group, own in enumerate((common + one, common + two)):
        parameter.grad = own if parameter.grad is None else parameter.grad + own
        meter.add(group, "image")
    (_, _, square), _ = meter._squares
    assert square == pytest.approx(float((common + one).square().sum()), rel=0.05)
    assert meter.cosines() == {"text": None, "image": pytest.approx(0.5, abs=0.03)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("showo.model.layers.0.input_layernorm.weight", "norms"),
        ("showo.model.layers.0.self_attn.q_layernorm.weight", "norms"),
        ("showo.model.layers.1.self_attn.dense.weight", "attention"),
        ("showo.model.layers.1.mlp.fc1.bias", "mlp"),
        ("showo.lm_head.weight", "head"),
        ("showo.model.embed_tokens.weight", "embeddings"),
        ("showo.mask", "other"),
    ],
)
def test_families_of_parameters(name: str, expected: str) -> None:
    assert family(name) == expected


def test_the_tool_measures_every_family(policy: ShowO, settings: TrainerSettings) -> None:
    """Eight groups of the tiny policy; families add up, and weights are as before."""
    before = [p.detach().clone() for p in policy.module.parameters()]
    found = measure(policy, Judge(), settings, 8)
    for modality in ("text", "image"):
        families: dict[str, Any] = dict(found[modality])
        whole = families.pop("all")
        assert {"norms", "attention", "mlp", "head", "embeddings"} <= families.keys()
        assert math.fsum(one["signal"] for one in families.values()) == pytest.approx(whole["signal"], rel=1e-6)
        assert math.fsum(one["noise"] for one in families.values()) == pytest.approx(whole["noise"], rel=1e-6)
    assert found["image"]["all"]["groups"] == 8
    assert all(map(partial(torch.equal), before, policy.module.parameters()))
