"""HostedScorer without Ray: golden check, batches, metrics; and the translation of Ray's status and errors."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    LocalRayletDiedError,
    OutOfMemoryError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from services import child
from services.scorers import registry
from services.scorers.base import Scorer, ScorerSpec
from services.scorers.custom import Custom, CustomSettings
from services.scorers.der import DerSettings
from services.settings_types import ScorerSettings, ServingSettings
from synod.contracts import Origin, Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import MissingInput, Overloaded, ReplicaLost, ScorerFailed, Unavailable
from tests import venvs
from tests.outcomes import values

SETTINGS = DerSettings(kind="der", model="/tmp", serving=ServingSettings(batch_wait_ms=0))


ORIGIN = Origin("m", "p")


class Number:
    spec = ScorerSpec("number", ("prompt",), 0.0, 1.0, "a test", "a test")

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [Score(float(item.prompt or "")) for item in items]


def build(name: str, settings: ScorerSettings) -> Scorer:
    return Number()


@pytest.fixture(autouse=True)
def _short_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.cluster.hosted_scorer.MAX_QUEUED_IMAGES", 2)


def hosted(golden: Path | None = None) -> Any:
    from services.cluster.hosted_scorer import HostedScorer

    return HostedScorer(replace(Number.spec, origin=ORIGIN), SETTINGS, golden and str(golden), build)


async def test_it_scores_the_given_indexes_and_counts_held_images() -> None:
    from services.observability import metrics

    subject = hosted()
    await subject.check_health()
    items = (ScoreItem(prompt="0.5"), ScoreItem(), ScoreItem(prompt="0.25"))
    assert await subject.score(items, [2, 0], 10.0) == [Score(0.25, origin=ORIGIN), Score(0.5, origin=ORIGIN)]
    held = metrics.HELD_IMAGES.labels("number")
    call = asyncio.create_task(subject.score(items, [0, 1, 2], 10.0))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await subject.score(items, [0], 10.0)
    await call
    assert held._value.get() == 0


async def test_batch_fill_is_measured() -> None:
    from services.observability import metrics

    def fill() -> float:
        return metrics.REGISTRY.get_sample_value("synod_batch_fill_sum", {"scorer": "number"}) or 0.0

    before = fill()
    await hosted().score((ScoreItem(prompt="1"),) * 2, [0, 1], 10.0)
    assert fill() - before == pytest.approx(2 / SETTINGS.serving.max_batch_images)


@pytest.mark.parametrize(("recorded", "healthy"), [(0.5, True), (0.6, False)])
async def test_golden_drift_fails_the_health_check(tmp_path: Path, recorded: float, healthy: bool) -> None:
    golden = tmp_path / "golden.json"
    golden.write_text(f'[{{"item": {{"prompt": "0.5"}}, "scores": {{"number": {recorded}}}}}]')
    subject = hosted(golden)
    if healthy:
        await subject.check_health()
    else:
        with pytest.raises(RuntimeError, match=r"scored 0\.5; recorded is 0\.6"):
            await subject.check_health()


async def test_golden_probes_do_not_count_in_metrics(tmp_path: Path) -> None:
    """Neither a probe alone nor its items in a batch with users' items count; the users' items do."""
    from services.cluster.golden_probe import ProbeTimeouts
    from services.cluster.hosted_scorer import HostedScorer
    from services.observability import metrics

    names = ("synod_batch_items_sum", "synod_batch_items_count", "synod_batch_seconds_count", "synod_batch_fill_sum")

    def counted() -> list[float]:
        found = [metrics.REGISTRY.get_sample_value(name, {"scorer": "number"}) or 0.0 for name in names]
        return [*found, metrics.REGISTRY.get_sample_value("synod_stage_seconds_count", {"stage": "device"}) or 0.0]

    golden = tmp_path / "golden.json"
    golden.write_text('[{"item": {"prompt": "0.5"}, "scores": {"number": 0.5}}]')
    subject: Any = HostedScorer(Number.spec, SETTINGS, str(golden), build, ProbeTimeouts(period_s=0.0))
    before = counted()
    await subject.check_health()
    probe = subject._golden_probe._probe
    assert probe is not None
    await probe
    assert counted() == before
    await subject.check_health()
    await asyncio.sleep(0)
    assert subject._batcher.held_images == 1
    assert [one.value for one in await subject.score((ScoreItem(prompt="0.25"),), [0], 10.0)] == [0.25]
    grown = [now - then for now, then in zip(counted(), before, strict=True)]
    assert grown[0] == 1
    assert grown[3] == pytest.approx(1 / SETTINGS.serving.max_batch_images)


class AcceleratorError(RuntimeError):
    """Has the name of torch's exception, by which it is recognised."""


class Gpu(Number):
    """Fails on the prompt 'assert', and from then on for every item, like a CUDA context."""

    broken = False
    runs = 0

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        self.runs += 1
        self.broken = self.broken or any(item.prompt == "assert" for item in items)
        if self.broken:
            raise AcceleratorError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA")
        return super().score(items)


async def test_a_replica_that_loses_its_device_is_replaced() -> None:
    """Other replicas score its items: those of the batch count as lost, later ones never ran."""
    from services.cluster.hosted_scorer import HostedScorer

    gpu = Gpu()
    subject = HostedScorer(replace(Number.spec, origin=ORIGIN), SETTINGS, None, lambda name, settings: gpu)
    items = (ScoreItem(prompt="0.5"), ScoreItem(prompt="assert"))
    assert values(await subject.score(items, [0], 10.0)) == [0.5]
    await subject.check_health()
    assert values(await subject.score(items, [0, 1], 10.0)) == ["replica_lost", "replica_lost"]
    assert gpu.runs == 2
    with pytest.raises(RuntimeError, match="'number' cannot use its device any more: CUDA error: device-side assert"):
        await subject.check_health()
    (later,) = await subject.score(items, [0], 10.0)
    assert isinstance(later, ScoreFailure)
    assert (later.code, later.retryable, gpu.runs) == ("unavailable", True, 2)


def overview(state: str, running: int, message: str = "") -> Any:
    from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger
    from ray.serve.schema import DeploymentStatusOverview

    states: Any = {"RUNNING": running} if running else {}
    trigger = DeploymentStatusTrigger.UNSPECIFIED
    return DeploymentStatusOverview(DeploymentStatus(state), trigger, states, message)


def test_readiness_counts_replicas_and_keeps_its_last_value() -> None:
    from services.backends import Readiness
    from services.cluster.readiness import readiness

    unknown = Readiness(True, 0, 0)
    assert not readiness(None, 1, unknown).ready
    assert readiness(overview("HEALTHY", 2), 2, unknown) == Readiness(True, 2, 2)
    assert "1 of 2 replicas" in str(readiness(overview("UPDATING", 1), 2, unknown).reason)
    good = readiness(overview("HEALTHY", 1), 0, unknown)
    assert readiness(overview("HEALTHY", 0), 0, good) == Readiness(True, 0, 0)
    bad = readiness(overview("UNHEALTHY", 0, "RuntimeError: not the recorded one"), 0, good)
    assert not bad.ready
    later = readiness(overview("HEALTHY", 0), 0, bad)
    assert not later.ready
    assert "not the recorded one" in str(later.reason)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ActorDiedError(), ReplicaLost),
        (WorkerCrashedError(), ReplicaLost),
        (OutOfMemoryError("the node is low on memory"), ReplicaLost),
        (LocalRayletDiedError(), ReplicaLost),
        (DeploymentUnavailableError.__new__(DeploymentUnavailableError), Unavailable),
        (TaskCancelledError(), Unavailable),
        (BackPressureError.__new__(BackPressureError), Overloaded),
        (RayTaskError("score", "trace", Overloaded("full")), Overloaded),
        (RayTaskError("score", "trace", MissingInput("no")), MissingInput),
        (RayTaskError("score", "trace", ActorDiedError()), ReplicaLost),
        (RayTaskError("score", "trace", ZeroDivisionError("x")), ScorerFailed),
        (GetTimeoutError("late"), ScorerFailed),
    ],
)
def test_rays_errors_are_translated(raised: Exception, expected: type[Exception]) -> None:
    from services.cluster.ray_errors import translate

    error = translate("number", raised)
    assert type(error) is expected
    assert "number" in str(error) or expected in (Overloaded, MissingInput)


def test_the_exception_is_found_in_serves_message() -> None:
    from services.cluster.readiness import exception_text

    message = "Failed. Error:\nray::X()\n  File 'a'\nRuntimeError: T:\n  File 'b'\n    c()\nOSError: no\nmodel\n"
    assert exception_text(message) == "OSError: no\nmodel"
    assert exception_text("still starting\n") == "still starting"


@pytest.mark.slow
async def test_golden_items_check_a_scorer_in_a_child_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go to the process in normal batches, at the start and afterwards."""
    from services.cluster.hosted_scorer import HostedScorer

    monkeypatch.setenv("PYTHONPATH", venvs.PYTHONPATH)
    settings = CustomSettings(
        kind="custom",
        load="own_scorer:load",
        needs=("image", "prompt"),
        options={"folder": str(tmp_path)},
        serving=ServingSettings(python=sys.executable),
    )
    item = {"image": {"shape": [1, 1, 3], "data": "MzMz"}, "prompt": "fine"}
    golden = tmp_path / "golden.json"
    for recorded, message in ((0.2, None), (0.3, "golden item 0 scored 0.2; recorded is 0.3")):
        golden.write_text(json.dumps([{"item": item, "scores": {"own": recorded}}]))
        subject = HostedScorer(registry.spec("own", settings), settings, str(golden), in_child)
        if message is None:
            await subject.check_health()
        else:
            with pytest.raises(RuntimeError, match=message):
                await subject.check_health()
        (outcome,) = await subject.score((ScoreItem(image=np.full((2, 2, 3), 255, np.uint8), prompt="fine"),), [0], 30)
        assert isinstance(outcome, Score)
        assert outcome.value == 1.0
        await subject._batcher.close()


def in_child(name: str, settings: ScorerSettings) -> Scorer:
    return Custom(registry.spec(name, settings), child.build(name, settings))  # type: ignore[arg-type]
