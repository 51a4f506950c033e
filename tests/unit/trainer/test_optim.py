"""Learning rates by hand and against transformers' schedules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from trainer.optim import lr_factor
from trainer.settings import OptimizerSettings


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
