"""Learning rates by hand and against transformers' schedules, and those of each modality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from synod.errors import SettingsError
from tests.unit.trainer.loops import MakeSettings
from tests.unit.trainer.tiny_flow import FLOW, TEXT
from trainer.optim import learning_rates, lr_factor, make_optimizer
from trainer.policy.base import ParameterGroup, Policy
from trainer.settings import OptimizerSettings, TrainerSettings
from trainer.types import MODALITIES


def factors(schedule: str, warmup_steps: int, steps: int) -> list[float]:
    settings = OptimizerSettings.model_validate({"schedule": schedule, "warmup_steps": warmup_steps})
    return [lr_factor(settings, step, steps) for step in range(steps)]


def test_learning_rates_by_hand() -> None:
    assert factors("constant", 3, 6) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert factors("constant", 0, 2) == [1, 1]
    assert factors("linear", 1, 5) == [0.5, 1, 0.75, 0.5, 0.25]
    assert factors("cosine", 0, 4) == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])
    assert factors("cosine", 9, 3) == [0.1, 0.2, 0.3]  # a run shorter than its warm-up


@pytest.mark.parametrize(
    ("schedule", "theirs"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
@given(st.integers(0, 7), st.integers(1, 30))
def test_after_the_warm_up_rates_equal_transformers(schedule: str, theirs: object, warmup: int, steps: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    assert callable(theirs)
    scheduler = theirs(optimizer, num_warmup_steps=warmup, num_training_steps=max(steps, warmup + 1))
    found = factors(schedule, warmup, max(steps, warmup + 1))
    for step, factor in enumerate(found):
        if step >= warmup:
            assert factor == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(0, 40), st.integers(1, 40))
def test_rates_rise_then_never_rise_again(schedule: str, warmup: int, steps: int) -> None:
    found = factors(schedule, warmup, steps)
    assert all(0 < factor <= 1 for factor in found)
    assert found[:warmup] == sorted(found[:warmup])
    assert found[warmup:] == sorted(found[warmup:], reverse=True)
    assert found[warmup : warmup + 1] in ([], [1.0])


class TwoParts:
    """The part of a policy with parameters for each modality that an optimizer reads."""

    def __init__(self, *kinds: Any) -> None:
        self.groups = [ParameterGroup(kind, (torch.nn.Parameter(torch.ones(1)),)) for kind in kinds]

    def parameter_groups(self) -> list[ParameterGroup]:
        return self.groups


@pytest.fixture
def joint_settings(settings_from: Callable[..., TrainerSettings]) -> MakeSettings:
    """Of a pipeline with a language model."""
    return lambda **overrides: settings_from(
        TEXT, **{**FLOW, "DATA__GENEVAL_SHARE": "0.5", "POLICY__LANGUAGE__MODEL": "x", **overrides}
    )


def test_each_modality_has_its_learning_rate(joint_settings: MakeSettings) -> None:
    rates = {"LOSS__TEXT__LR": "2e-3", "LOSS__IMAGE__LR": "4e-3", "OPTIMIZER__LR": "8e-3"}
    settings = joint_settings(**rates, STEPS="4", OPTIMIZER__SCHEDULE="linear")
    policy = cast(Policy, TwoParts("text", None, "image"))
    assert [group["lr"] for group in make_optimizer(policy, settings).param_groups] == [2e-3, 8e-3, 4e-3]
    for step, factor in ((1, 0.75), (2, 0.5), (0, 1)):
        assert learning_rates(policy, settings, step) == [factor * rate for rate in (2e-3, 8e-3, 4e-3)]
    only_text = joint_settings(LOSS__TEXT__LR="2e-3", OPTIMIZER__LR="8e-3")
    optimizer = make_optimizer(cast(Policy, TwoParts("text", "image")), only_text)
    assert [group["lr"] for group in optimizer.param_groups] == [2e-3, 8e-3]


def test_a_rate_without_parameters_is_refused(joint_settings: MakeSettings) -> None:
    message = r"\[trainer\.loss\.text\] lr = 5e-07, but this policy samples texts and .* give \[trainer\.optimizer\]"
    with pytest.raises(SettingsError, match=message):
        make_optimizer(cast(Policy, TwoParts(None)), joint_settings(LOSS__TEXT__LR="5e-7"))


def test_a_rate_of_a_model_that_is_not_trained_is_refused(joint_settings: MakeSettings) -> None:
    settings = joint_settings(LOSS__IMAGE__LR="1e-4")
    with pytest.raises(SettingsError, match=r"\[trainer\.loss\.image\] lr = 0.0001, but .* trains nothing"):
        make_optimizer(cast(Policy, TwoParts("text")), settings)


QUERIES = {"POLICY__LANGUAGE__BRIDGE": "queries"}


@pytest.mark.parametrize(
    ("policy", "accepted"),
    [
        ({}, {"text", "image"}),
        ({"POLICY__TRAINS": '["image"]'}, {"image"}),
        ({"POLICY__TRAINS": '["text"]'}, {"text"}),
        (QUERIES, {"image"}),  # the language model samples images, too
        ({**QUERIES, "POLICY__TRAINS": '["text"]'}, set()),
    ],
)
def test_settings_refuse_a_rate_of_no_parameters(
    joint_settings: MakeSettings, policy: dict[str, str], accepted: set[str]
) -> None:
    """Before a model is loaded and evaluated."""
    for kind in MODALITIES:
        rate = {f"LOSS__{kind.upper()}__LR": "1e-4"}
        if kind in accepted:
            assert joint_settings(**policy, **rate).loss.rates == {kind: 1e-4}
            continue
        with pytest.raises(SettingsError, match=rf"loss\.{kind}\.lr = 0\.0001, but .* policy\.trains and"):
            joint_settings(**policy, **rate)


def test_settings_of_one_model_have_one_rate(
    tiny_settings: MakeSettings, settings_from: Callable[..., TrainerSettings]
) -> None:
    for kind in ("TEXT", "IMAGE"):
        with pytest.raises(SettingsError, match=r"sample \w+s alone; remove it and give optimizer\.lr"):
            tiny_settings(**{f"LOSS__{kind}__LR": "1e-4"})
    assert settings_from(TEXT, **FLOW, LOSS__IMAGE__LR="1e-4").loss.rates == {"image": 1e-4}
    with pytest.raises(SettingsError, match=r"loss\.text\.lr = 0\.0001"):
        settings_from(TEXT, **FLOW, LOSS__TEXT__LR="1e-4")
