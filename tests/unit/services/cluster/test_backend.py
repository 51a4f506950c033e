"""RayBackend stages a request's items, without a cluster."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from services.backends import Staged
from synod.contracts import ScoreItem


async def test_items_in_the_object_store_have_no_second_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.cluster import backend
    from services.cluster.host import SharedItems

    stored: list[Any] = []

    def put(items: Any) -> str:
        stored.append(items)
        return "a reference"

    monkeypatch.setattr(backend.ray, "put", put)
    subject = backend.RayBackend({}, {}, {}, "synod", {})
    large, small = (ScoreItem(np.zeros((1024, 1024, 3), np.uint8)),), (ScoreItem(prompt="a cat"),)
    staged = await subject.stage(large, 2)
    assert (staged.items, staged.shared) == ((), SharedItems("a reference"))  # type: ignore[arg-type]
    assert [id(items) for items in stored] == [id(large)]
    assert await subject.stage(small, 2) == Staged(small)
    assert len(stored) == 1
