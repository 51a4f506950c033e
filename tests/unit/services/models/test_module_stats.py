"""Recorded modules and their parameters, against counts by hand."""

from __future__ import annotations

from typing import Any

import torch

from services.models import cache, dinov2
from services.models.cache import Device
from services.models.module_stats import ParameterStats, record, record_modules


def test_parameter_bytes_are_counted_once() -> None:
    small = torch.nn.Linear(4, 2)  # 10 x 4 bytes
    large = torch.nn.Linear(8, 8, dtype=torch.float16)  # 72 x 2 bytes
    tied = torch.nn.Sequential(small, large)
    assert ParameterStats.of([small]) == ParameterStats(40, "cpu", "float32")
    assert ParameterStats.of([small, large, tied]) == ParameterStats(184, "cpu", "float16")
    assert ParameterStats.of([torch.nn.Linear(4, 2, device="meta")]).device == "meta"
    assert ParameterStats.of([]) == ParameterStats(0, None, None)


def test_modules_are_recorded_once_and_passed_outward() -> None:
    first, second = torch.nn.Identity(), torch.nn.Identity()
    record(first)  # not recorded
    with record_modules() as outer:
        record(first, first)
        with record_modules() as inner:
            record(second)
        record(second)
    assert outer == [first, second]
    assert inner == [second]


def test_shared_model_is_recorded_for_each_loader(tiny_models: Any) -> None:
    device = Device("cpu", "bfloat16")
    with record_modules() as first:
        model = dinov2.load(tiny_models.dinov2, device)
    with record_modules() as second:
        assert dinov2.load(tiny_models.dinov2, device) is model
    assert first == second == [model._model]
    with record_modules() as around:
        cache.shared("around", tiny_models.dinov2, device, lambda folder: dinov2.load(str(folder), device))
    assert around == first, "what a loader loads is its own as well"
