"""RayBackend stages a request's items and asks for Serve's status, without a cluster."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
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


async def test_probes_share_one_call_for_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many probes ask while Serve does not answer, requests find a free thread."""
    from services.cluster import backend

    answer, calls = threading.Event(), list[str]()

    def status() -> Any:
        calls.append(threading.current_thread().name)
        answer.wait(20)
        running = SimpleNamespace(replica_states={"RUNNING": 1}, message="")
        return SimpleNamespace(applications={"synod": SimpleNamespace(deployments={"a": running})})

    monkeypatch.setattr(backend.serve, "status", status)
    monkeypatch.setattr(backend, "STATUS_TIMEOUT_S", 0.05)
    handle: Any = SimpleNamespace(options=lambda **options: None)
    subject = backend.RayBackend({}, {"a": handle}, {"a": 1}, "synod", {"a": ("a", "b")})
    for found in await asyncio.gather(*(subject.readiness() for _ in range(100))):
        assert not found["a"].ready
        assert found["b"].reason == "Serve did not report its status within 0.05 s"
    assert await asyncio.to_thread(lambda: "free") == "free"
    answer.set()
    monkeypatch.setattr(backend, "STATUS_TIMEOUT_S", 20.0)
    for found in await asyncio.gather(*(subject.readiness() for _ in range(100))):
        assert found["b"].ready
    assert len(calls) == 1
