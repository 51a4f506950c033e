"""What scorers hold is counted by hand."""

from __future__ import annotations

from typing import Any

import torch

from services.models import cache, dinov2
from services.models.cache import Device
from services.models.ledger import Held, note, noting


def test_bytes_are_counted_once_and_the_most_of_them_name_device_and_dtype() -> None:
    small = torch.nn.Linear(4, 2)  # 10 x 4 bytes
    large = torch.nn.Linear(8, 8, dtype=torch.float16)  # 72 x 2 bytes
    tied = torch.nn.Sequential(small, large)
    assert Held.by([small]) == Held(40, "cpu", "float32")
    assert Held.by([small, large, tied]) == Held(184, "cpu", "float16")
    assert Held.by([torch.nn.Linear(4, 2, device="meta")]).device == "meta"
    assert Held.by([]) == Held(0, None, None)


def test_a_ledger_has_each_module_once_and_tells_the_one_around_it() -> None:
    first, second = torch.nn.Identity(), torch.nn.Identity()
    note(first)  # nobody listens
    with noting() as outer:
        note(first, first)
        with noting() as inner:
            note(second)
        note(second)
    assert outer == [first, second]
    assert inner == [second]


def test_a_shared_model_counts_for_each_who_loads_it(tiny_models: Any) -> None:
    device = Device("cpu", "bfloat16")
    with noting() as first:
        model = dinov2.load(tiny_models.dinov2, device)
    with noting() as second:
        assert dinov2.load(tiny_models.dinov2, device) is model
    assert first == second == [model._model]
    with noting() as around:
        cache.shared("around", tiny_models.dinov2, device, lambda folder: dinov2.load(str(folder), device))
    assert around == first, "what a loader loads is its own as well"
