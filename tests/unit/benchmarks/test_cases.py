"""Fault cases that kill no process, on a real gateway in this process, and on gateways with planted bugs."""

from __future__ import annotations

import asyncio
import socket
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from benchmarks.faults import cases
from benchmarks.faults.scorers import BUSY_BATCH, build
from benchmarks.faults.service import QUEUE, SETTINGS, Running
from services.backends import LocalBackend
from services.gateway import app, disconnect, fanout, ndjson
from services.gateway.admission import Admission, Window
from services.gateway.core import Gateway
from services.gateway.store import MemoryStore
from services.settings import load
from synod.contracts import Origin

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at import
    import ray.serve  # noqa: F401


@dataclass(frozen=True)
class InProcess(Running):
    """A gateway in a thread of this process instead of a service."""


@pytest.fixture
def service(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[InProcess]:
    """A gateway whose store keeps 1,000 scores, or as many as the test's parameter says."""
    (tmp_path / "models").mkdir()
    (tmp_path / "golden.json").touch()
    config = tmp_path / "service.toml"
    config.write_text(SETTINGS.format(port=1, queue=QUEUE, busy_batch=BUSY_BATCH))
    settings = load(config, {})
    scorer = settings.scorers["nan"]
    listener = socket.create_server(("127.0.0.1", 0))
    servers: list[uvicorn.Server] = []

    async def serve() -> None:
        scorers = {name: build(name, scorer) for name in ("colour", "nan", "busy", "logged")}
        for one in scorers.values():
            one.spec = replace(one.spec, origin=Origin("none", "1"))
        backend = LocalBackend(scorers, max_batch_images=BUSY_BATCH)
        admission = Admission({"busy": Window(16, 2)}, QUEUE)
        store = MemoryStore(2**20, getattr(request, "param", 1000))
        gateway = Gateway(backend, {}, settings.limits, admission=admission, store=store)
        servers.append(uvicorn.Server(uvicorn.Config(app.build(gateway), log_level="error", ws="none")))
        await servers[0].serve([listener])
        await backend.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    port = listener.getsockname()[1]
    yield InProcess(f"http://127.0.0.1:{port}", tmp_path, settings, None, port)  # type: ignore[arg-type]
    servers[0].should_exit = True
    thread.join()


@pytest.mark.parametrize(
    ("inject", "amount"),
    [(cases.corrupt_image, 64), (cases.nan, 200), (cases.overload, 2.0), (cases.timeout_then_retry, 2)],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_every_check_of_a_case_holds(service: InProcess, inject: Any, amount: float) -> None:
    found = inject(service, amount)
    assert found["held"]
    assert all(found["held"].values()), found


@pytest.mark.parametrize("service", [0], indirect=True)
def test_repeated_work_is_detected(service: InProcess) -> None:
    """Without a score store a retry computes its scores again."""
    found = cases.timeout_then_retry(service, 1)
    assert found["device_runs"] == 8
    assert not found["held"]["device work is done once"]
    assert found["held"]["every retry is scored"]


def test_work_for_a_disconnected_client_is_detected(service: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = cases.client_gone(service, 1)
    assert all(kept["held"].values()), kept

    async def deaf(http: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(disconnect, "wait_for_disconnect", deaf)
    monkeypatch.setattr(ndjson, "wait_for_disconnect", deaf)
    monkeypatch.setattr(fanout, "KEEP_AFTER_DISCONNECT_S", 3600.0)
    assert not cases.client_gone(service, 1)["held"]["most of its work is dropped"]
