"""Several scorers in one process: shared models and one batch at a time, but separate queues and health checks."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.scorers import registry
from services.scorers.base import Scorer, ScorerSpec
from services.scorers.der import DerSettings
from services.scorers.judge import JudgeSettings
from services.settings_types import ScorerSettings, ServingSettings
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import Overloaded

SPEC = ScorerSpec("", ("prompt",), 0.0, 9.0, "a test", "a test")


class Batch:
    """Scores an item with the size of its batch; raises for a prompt 'poison'."""

    def __init__(self, name: str) -> None:
        self.spec = replace(SPEC, name=name)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        if any(item.prompt == "poison" for item in items):
            raise ValueError("poisoned")
        return [Score(float(len(items)))] * len(items)


def build(name: str, settings: ScorerSettings) -> Scorer:
    return Batch(name)


@pytest.fixture(autouse=True)
def _short_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.cluster.hosted_scorer.MAX_QUEUED_IMAGES", 8)


def host(sizes: dict[str, int], golden: Path | None = None) -> Any:
    from services.cluster.host import Host

    settings = {
        name: DerSettings(kind="der", model="/tmp", serving=ServingSettings(max_batch_images=n))
        for name, n in sizes.items()
    }
    specs = {name: replace(SPEC, name=name) for name in sizes}
    return Host(specs, settings, golden and str(golden), build)


async def test_each_scorer_forms_its_own_batches() -> None:
    subject = host({"one": 2, "other": 8})
    items = (ScoreItem(prompt="a"),) * 6
    calls = (subject.score(name, items, range(6), 10.0) for name in ("one", "other"))
    values = [[outcome.value for outcome in outcomes] for outcomes in await asyncio.gather(*calls)]
    assert values == [[2.0] * 6, [6.0] * 6]


async def test_a_full_queue_or_failure_affects_one_scorer() -> None:
    subject = host({"one": 2, "other": 8})
    good, poison = (ScoreItem(prompt="a"),), (ScoreItem(prompt="poison"),)
    full = asyncio.create_task(subject.score("one", poison * 8, range(8), 10.0))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await subject.score("one", good, [0], 10.0)
    assert [o.value for o in await subject.score("other", good, [0], 10.0)] == [1.0]
    assert all(isinstance(outcome, ScoreFailure) for outcome in await full)


async def test_batches_of_colocated_scorers_never_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests at once share the batches of every scorer, and no two batches run at the same time."""
    running, most = 0, 0

    def score(self: Batch, items: Sequence[ScoreItem]) -> list[Outcome]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1
        return [Score(float(len(items)))] * len(items)

    monkeypatch.setattr(Batch, "score", score)
    names = ("a", "b", "c", "d", "e")
    subject, items = host(dict.fromkeys(names, 8)), (ScoreItem(prompt="x"),) * 4
    calls = (subject.score(name, items, range(4), 10.0) for _ in range(2) for name in names)
    assert {o.value for outcomes in await asyncio.gather(*calls) for o in outcomes} == {8.0}
    assert most == 1


async def test_a_judge_does_not_block_the_other_scorers() -> None:
    """A scorer that calls an external API runs its batches in a thread of its own."""
    from services.cluster.host import Host

    class Waiting(Batch):
        def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
            assert scored.wait(20)
            return super().score(items)

    scored = threading.Event()
    settings = {
        "judge": JudgeSettings(kind="judge", url="http://judge:1/v1", model="m"),
        "local": DerSettings(kind="der", model="/tmp"),
    }
    specs = {name: replace(SPEC, name=name) for name in settings}
    subject: Any = Host(specs, settings, None, lambda name, _: (Waiting if name == "judge" else Batch)(name))
    item = (ScoreItem(prompt="x"),)
    waiting = asyncio.create_task(subject.score("judge", item, [0], 20.0))
    await asyncio.sleep(0.05)
    assert [o.value for o in await subject.score("local", item, [0], 10.0)] == [1.0]
    scored.set()
    assert [o.value for o in await waiting] == [1.0]


async def test_one_failed_golden_check_fails_the_process(tmp_path: Path) -> None:
    golden = tmp_path / "golden.json"
    golden.write_text('[{"item": {"prompt": "a"}, "scores": {"one": 1.0, "other": 2.0}}]')
    with pytest.raises(RuntimeError, match=r"scorer 'other' does not score as recorded: .* recorded is 2"):
        await host({"one": 2, "other": 2}, golden).check_health()
    golden.write_text('[{"item": {"prompt": "a"}, "scores": {"one": 1.0, "other": 1.0}}]')
    await host({"one": 2, "other": 2}, golden).check_health()


async def test_scorers_of_one_model_share_its_weights(tiny_models: Any) -> None:
    from services.cluster.host import Host

    settings = {name: DerSettings(kind="der", model=tiny_models.dinov2) for name in ("one", "other")}
    specs = {name: registry.spec(name, one) for name, one in settings.items()}
    scorers = Host(specs, settings, None, registry.build)._scorers
    loaded = {name: scorer.loaded for name, scorer in scorers.items()}
    assert loaded["one"].parameter_bytes == loaded["other"].parameter_bytes > 10_000
    assert (loaded["other"].device, loaded["other"].dtype) == ("cpu", "float32")
    assert 0 < loaded["other"].load_s < 600
    first, second = (scorers[name]._scorer._embed for name in ("one", "other"))  # type: ignore[attr-defined]
    assert first == second  # the method of one model


class Reference:
    """A reference into the object store that counts how often it is fetched."""

    def __init__(self, items: tuple[ScoreItem, ...] | Exception) -> None:
        self.items, self.fetched = items, 0

    def hex(self) -> str:
        return "ab" * 28

    def __await__(self) -> Any:
        self.fetched += 1
        yield from asyncio.sleep(0.01).__await__()
        if isinstance(self.items, Exception):
            raise self.items
        return self.items


async def test_calls_of_one_request_share_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """The items are fetched once for the calls in progress, and freed after the last call."""
    from services.cluster.host import SharedItems

    seen: set[int] = set()

    def score(self: Batch, items: Sequence[ScoreItem]) -> list[Outcome]:
        seen.update(id(item) for item in items)
        return [Score(1.0)] * len(items)

    monkeypatch.setattr(Batch, "score", score)
    subject, items = host({"one": 2, "other": 8}), tuple(ScoreItem(prompt=str(n)) for n in range(4))
    reference = Reference(items)
    calls = [subject.score(name, SharedItems(reference), range(4), 10.0) for name in ("one", "other")]  # type: ignore[arg-type]
    assert [len(outcomes) for outcomes in await asyncio.gather(*calls)] == [4, 4]
    assert reference.fetched == 1
    assert seen == set(map(id, items))
    await asyncio.sleep(0)
    gc.collect()
    assert not subject._fetches


async def test_cancelling_one_call_keeps_the_shared_fetch() -> None:
    from services.cluster.host import SharedItems

    subject, reference = host({"one": 2, "other": 8}), Reference((ScoreItem(prompt="a"),))
    cancelled, kept = (
        asyncio.create_task(subject.score(name, SharedItems(reference), [0], 10.0))  # type: ignore[arg-type]
        for name in ("one", "other")
    )
    await asyncio.sleep(0)
    cancelled.cancel()
    assert [o.value for o in await kept] == [1.0]
    assert reference.fetched == 1


async def test_every_call_raises_if_the_items_are_lost() -> None:
    from ray.exceptions import ObjectLostError

    from services.cluster.host import SharedItems

    subject, reference = host({"one": 2, "other": 8}), Reference(ObjectLostError("ab" * 28, "", ""))
    calls = [subject.score(name, SharedItems(reference), [0], 10.0) for name in ("one", "other")]  # type: ignore[arg-type]
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, ObjectLostError) for error in found)
