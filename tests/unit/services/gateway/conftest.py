"""Scorers and a backend that a test steers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from services.backends import Loaded, Readiness, ScorerSpec, Staged
from services.gateway.core import Gateway
from services.settings import EnsembleSettings, LimitSettings
from synod.contracts import Outcome, Score, ScoreItem

ENSEMBLES = {
    "council": EnsembleSettings(
        by_kind={"person": {"a": 0.5, "b": 0.25, "face": 0.25}, "animal": {"a": 0.5, "b": 0.5, "face": 0.0}}
    )
}


def mean(items: Sequence[ScoreItem]) -> list[Outcome]:
    return [Score(float(np.mean(item.pixels())) / 255) for item in items]


@dataclass
class SteeredBackend:
    """Answers with `plan[name]`'s next step: an exception, seconds to sleep, an event to await, or a function of the
    items."""

    plan: dict[str, list[object]] = field(default_factory=dict)
    calls: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    @property
    def specs(self) -> Mapping[str, ScorerSpec]:
        return {name: ScorerSpec(name, ("image",), 0.0, 1.0, "a test", "a test") for name in ("a", "b", "face")}

    async def stage(self, items: tuple[ScoreItem, ...], scorers: int) -> Staged:
        return Staged(items)

    async def score(self, scorer: str, staged: Staged, indexes: Sequence[int], timeout_s: float) -> list[Outcome]:
        self.calls.append((scorer, tuple(indexes)))
        steps = self.plan.get(scorer, [])
        step = steps.pop(0) if steps else mean
        if isinstance(step, Exception):
            raise step
        if isinstance(step, int | float | asyncio.Event):
            try:
                await (step.wait() if isinstance(step, asyncio.Event) else asyncio.sleep(step))
            except asyncio.CancelledError:
                self.cancelled.append(scorer)
                raise
            step = mean
        answer: Callable[[Sequence[ScoreItem]], list[Outcome]] = step  # type: ignore[assignment]
        return answer([staged.items[i] for i in indexes])

    async def readiness(self) -> Mapping[str, Readiness]:
        return {"a": Readiness(True, 1, 1), "b": Readiness(False, 0, 1, "loading")}

    async def loaded(self) -> Mapping[str, Loaded]:
        return {"a": Loaded(1.5, 4096, "cuda:0", "bfloat16")}


Refuse = Callable[[Exception], None]


@pytest.fixture
def refuse(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Return a function that makes the gateway raise an error for every request."""

    def refuse_with(error: Exception) -> None:
        async def score(*arguments: object) -> None:
            raise error

        monkeypatch.setattr(gateway, "score", score)

    return refuse_with


@pytest.fixture
def backend() -> SteeredBackend:
    return SteeredBackend()


@pytest.fixture
def gateway(backend: SteeredBackend) -> Gateway:
    limits = LimitSettings(max_body_bytes=4096, max_items=8, max_image_pixels=10_000)
    return Gateway(backend, ENSEMBLES, limits)
