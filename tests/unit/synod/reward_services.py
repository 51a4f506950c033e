"""Real services with fake scorers, on loopback ports."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn

from services.backends import LocalBackend, ScorerSpec
from services.gateway import app
from services.gateway.core import Gateway
from services.settings import EnsembleSettings, LimitSettings
from synod.contracts import Origin, Outcome, Score, ScoreFailure, ScoreItem


@dataclass
class Bright:
    """Score the mean of an image in 0..1, plus `shift`; fail images whose first red value is 13."""

    name: str
    needs: tuple[Any, ...] = ("image", "prompt")
    shift: float = 0.0
    model: str = "m1"
    received: list[ScoreItem] = field(default_factory=list)

    @property
    def spec(self) -> ScorerSpec:
        origin = Origin(self.model, "1")
        return ScorerSpec(self.name, self.needs, 0.0, 2.0, "a test", "brightness", origin)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        self.received += items
        return [self.outcome(item) for item in items]

    def outcome(self, item: ScoreItem) -> Outcome:
        if item.image is None:
            assert item.reasoning is not None
            return Score(len(item.reasoning.text) / 10)
        if item.pixels()[0, 0, 0] == 13:
            return ScoreFailure("scorer_failed", "the red value is 13")
        return Score(float(np.mean(item.pixels())) / 255 + self.shift, origin=Origin(self.model, "1"))


@dataclass
class RewardService:
    """A gateway on a loopback port, its scorers by name."""

    url: str
    scorers: dict[str, Bright]


ENSEMBLES = {"council": EnsembleSettings(weights={"ber": 0.5, "der": 0.5})}


@contextmanager
def serving(*scorers: Bright, limits: LimitSettings | None = None, **options: Any) -> Iterator[RewardService]:
    """Serve a Gateway(LocalBackend) by uvicorn in a thread until the block ends."""
    by_name = {scorer.name: scorer for scorer in scorers}
    listener = socket.create_server(("127.0.0.1", 0))
    started: list[uvicorn.Server] = []
    up = threading.Event()

    async def serve() -> None:
        backend = LocalBackend(by_name)
        gateway = Gateway(backend, ENSEMBLES, limits or LimitSettings())
        served = app.build(gateway, **options)
        config = uvicorn.Config(served, log_level="error", ws="none", timeout_graceful_shutdown=5)
        started.append(uvicorn.Server(config))
        up.set()
        await started[0].serve([listener])
        await backend.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert up.wait(20)
    try:
        yield RewardService(f"http://127.0.0.1:{listener.getsockname()[1]}", by_name)
    finally:
        started[0].should_exit = True
        thread.join(20)
