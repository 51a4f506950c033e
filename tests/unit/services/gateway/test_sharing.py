"""A gateway computes equal scores once: it caches scores, joins work in flight and knows images by digest."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from services.backends import LocalBackend
from services.gateway import fanout, quota
from services.gateway.admission import Admission, Window
from services.gateway.core import Gateway
from services.gateway.keys import score_keys
from services.gateway.quota import Caller
from services.gateway.store import Claim, MemoryStore, ScoreKey
from services.observability import metrics
from services.scorers.base import ScorerSpec
from services.settings import EnsembleSettings, LimitSettings
from synod.contracts import (
    Concept,
    ImageRef,
    Origin,
    Outcome,
    Rewards,
    Score,
    ScoredItem,
    ScoreFailure,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
)
from synod.digest import digest_of
from synod.errors import ImageTooLarge, Overloaded, PayloadTooLarge, UnknownImage
from synod.images import encode_png
from tests.outcomes import until, values

ORIGIN = Origin("m", "p")
ENSEMBLES = {"council": EnsembleSettings(by_kind={"person": {"a": 0.5, "b": 0.5}})}


@dataclass
class Steered:
    """Scores an image by its first sample, and raises for the prompt 'poison'. Each run waits for `device`."""

    spec: ScorerSpec
    measured: list[float] = field(default_factory=list)
    batches: int = 0
    device: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.device.set()

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        self.batches += 1
        assert self.device.wait(30)
        if any(item.prompt == "poison" for item in items):
            raise ValueError("poison")
        self.measured += [value(item) for item in items]
        return [Score(value(item)) for item in items]


class HeldBackend(LocalBackend):
    """A backend whose calls of a scorer wait for `open`; it records the calls, and those cancelled meanwhile."""

    def __init__(self, scorers: dict[str, Steered]) -> None:
        super().__init__(scorers)
        self.open = {name: asyncio.Event() for name in scorers}
        self.called: list[str] = []
        self.cancelled: list[str] = []
        self.next_outcome: list[ScoreFailure] = []
        for event in self.open.values():
            event.set()

    async def score(  # type: ignore[override]
        self, scorer: str, staged: object, indexes: Sequence[int], timeout_s: float
    ) -> list[Outcome]:
        self.called.append(scorer)
        try:
            await self.open[scorer].wait()
        except asyncio.CancelledError:
            self.cancelled.append(scorer)
            raise
        if self.next_outcome:
            return [self.next_outcome.pop()] * len(indexes)
        return await super().score(scorer, staged, indexes, timeout_s)  # type: ignore[arg-type]


class TrackingStore(MemoryStore):
    """A store that knows the open claims."""

    def __init__(self) -> None:
        super().__init__(2**20, 1000)
        self.open_claims: set[ScoreKey] = set()

    async def claim(self, keys: Sequence[ScoreKey], lease_s: float) -> list[Score | Claim]:
        claims = await super().claim(keys, lease_s)
        self.open_claims |= {key for key, claim in zip(keys, claims, strict=True) if claim is Claim.OWNED}
        return claims

    async def settle(self, outcomes: Mapping[ScoreKey, Outcome | None]) -> None:
        self.open_claims -= set(outcomes)
        await super().settle(outcomes)


@dataclass
class RewardService:
    gateway: Gateway
    admission: Admission
    backend: HeldBackend
    a: Steered
    b: Steered
    store: TrackingStore

    async def values(self, *items: ScoreItem, scorers: tuple[str, ...] = ("a",)) -> list[float | str | None]:
        response = await self.gateway.score(ScoreRequest(items, scorers, timeout_ms=20_000))
        return values_by(response, scorers[0])

    def start(self, *items: ScoreItem, scorers: tuple[str, ...] = ("a",)) -> asyncio.Task[list[float | str | None]]:
        return asyncio.create_task(self.values(*items, scorers=scorers))

    async def until_called(self, times: int) -> None:
        await until(lambda: len(self.backend.called) >= times)


@pytest.fixture
async def service() -> AsyncIterator[RewardService]:
    a, b = (Steered(ScorerSpec(name, ("image",), 0.0, 1.0, "a test", "a test", ORIGIN)) for name in "ab")
    backend, store = HeldBackend({"a": a, "b": b}), TrackingStore()
    limits = LimitSettings(max_items=8, max_image_bytes=10_000, max_image_pixels=10_000)
    admission = Admission({"a": Window(2, 1), "b": Window(2, 1)}, max_waiting=4)
    gateway = Gateway(backend, ENSEMBLES, limits, admission=admission, store=store)
    yield RewardService(gateway, admission, backend, a, b, store)
    gateway.close()
    await backend.close()


def item(level: int, prompt: str | None = None) -> ScoreItem:
    return ScoreItem(np.full((4, 4, 3), level, np.uint8), prompt)


def value(item: ScoreItem) -> float:
    return float(item.pixels()[0, 0, 0])


def values_by(response: ScoreResponse, scorer: str) -> list[float | str | None]:
    return values(result.scores[scorer] for result in response.results)


def idle(service: RewardService) -> bool:
    queues = [service.admission.queue(name) for name in "ab"]
    return not any(queue.waiting or queue.running for queue in queues) and not service.store.open_claims


async def test_repeated_request_returns_cached_scores(service: RewardService) -> None:
    request = ScoreRequest((item(1), item(2)), ("a", "b"), weights={"a": 0.5}, request_id="lost-reply")
    first = await service.gateway.score(request)
    assert await service.gateway.score(request) == first
    assert (service.a.measured, service.b.measured) == ([1, 2], [1, 2])
    assert idle(service)


async def test_only_new_items_are_computed(service: RewardService) -> None:
    await service.values(item(1), item(3))
    assert await service.values(item(1), item(2), item(3)) == [1, 2, 3]
    assert await service.values(item(1, "another prompt")) == [1]
    assert sorted(service.a.measured) == [1, 1, 2, 3]


async def test_concurrent_requests_share_common_items(service: RewardService) -> None:
    service.backend.open["a"].clear()
    equal = [service.start(item(1), item(2)) for _ in range(5)]
    await service.until_called(1)
    other = service.start(item(2), item(3), item(1))
    service.backend.open["a"].set()
    assert await asyncio.gather(*equal, other) == [[1, 2]] * 5 + [[2, 3, 1]]
    assert sorted(service.a.measured) == [1, 2, 3]


async def test_duplicate_items_are_computed_once(service: RewardService) -> None:
    assert await service.values(item(1), item(2), item(2), item(1)) == [1, 2, 2, 1]
    assert service.a.measured == [1, 2]
    poisoned = item(9, "poison")
    for batches in (2, 3):  # the failure is not cached
        assert await service.values(*[poisoned] * 8) == ["scorer_failed"] * 8
        assert service.a.batches == batches
    bad = ScoreItem(b"no image")
    assert await service.values(bad, item(5), bad) == ["bad_image", 5, "bad_image"]
    assert idle(service)


async def test_retryable_failure_is_not_shared(service: RewardService) -> None:
    """The waiting request calls the scorer itself."""
    service.backend.open["a"].clear()
    service.backend.next_outcome = [ScoreFailure("deadline_exceeded", "late", retryable=True)]
    first = service.start(item(1))
    await service.until_called(1)
    second = service.start(item(1))
    await until(lambda: service.store.open_claims)
    service.backend.open["a"].set()
    assert await first == ["deadline_exceeded"]
    assert await second == [1]
    assert idle(service)


async def test_waiting_request_takes_over_after_a_disconnect(
    service: RewardService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "KEEP_AFTER_DISCONNECT_S", 0.01)
    service.backend.open["a"].clear()
    first = service.start(item(1))
    await service.until_called(1)
    second = service.start(item(1))
    await asyncio.sleep(0.02)
    first.cancel()
    await service.until_called(2)
    assert service.backend.cancelled == ["a"]
    service.backend.open["a"].set()
    assert await second == [1]
    assert service.a.measured == [1]
    assert idle(service)


async def test_repeated_request_joins_the_lingering_call(service: RewardService) -> None:
    service.backend.open["a"].clear()
    lost = service.start(item(1))
    await service.until_called(1)
    lost.cancel()
    await asyncio.wait([lost])
    again = service.start(item(1))
    await until(lambda: service.store.open_claims)
    service.backend.open["a"].set()
    assert await again == [1]
    assert service.backend.called == ["a"]
    assert service.backend.cancelled == []


async def test_disconnect_drops_queued_work_at_once(service: RewardService, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window is 2: the third image waits in the queue and never reaches the backend."""
    monkeypatch.setattr(fanout, "KEEP_AFTER_DISCONNECT_S", 3600.0)
    under_way, waiting = await fill(service, "a", 1, 2, 3)
    waiting.cancel()
    await asyncio.wait([waiting])
    await until(lambda: not service.admission.queue("a").waiting)
    service.backend.open["a"].set()
    assert await under_way == [1, 2]
    assert service.a.measured == [1, 2]
    await until(lambda: idle(service))


async def late(service: RewardService, level: int, timeout_ms: int = 500) -> None:
    """Send a request whose deadline passes."""
    response = await service.gateway.score(ScoreRequest((item(level),), ("a",), timeout_ms=timeout_ms))
    failure = response.results[0].scores["a"]
    assert isinstance(failure, ScoreFailure)
    assert (failure.code, failure.retryable) == ("deadline_exceeded", True)


async def test_deadline_keeps_started_work_and_drops_queued_work(service: RewardService) -> None:
    """The second call waits in the batcher, the third in the gateway's queue. All end while the device runs."""
    service.a.device.clear()
    calls = [asyncio.create_task(late(service, 1))]
    await until(lambda: service.a.batches)
    calls += [asyncio.create_task(late(service, n, 1000)) for n in (2, 3)]
    await until(lambda: service.admission.queue("a").waiting == 1)
    await asyncio.gather(*calls)
    queue = service.admission.queue("a")
    await until(lambda: (queue.running, queue.waiting, len(service.store.open_claims)) == (1, 0, 1))
    retry = service.start(item(1))
    await asyncio.sleep(0)
    service.a.device.set()
    assert await retry == [1]
    assert await service.values(item(1)) == [1]
    assert (service.a.measured, service.a.batches) == ([1], 1)
    assert idle(service)
    assert await service.values(item(2)) == [2]


@pytest.mark.parametrize("ends_by", ["the limit", "closing the gateway", "a store without scores"])
async def test_work_past_its_deadline_is_cancelled(
    service: RewardService, monkeypatch: pytest.MonkeyPatch, ends_by: str
) -> None:
    if ends_by == "the limit":
        monkeypatch.setattr(fanout, "KEEP_AFTER_DEADLINE_S", 0.01)
    service.store.keeps_scores = ends_by != "a store without scores"
    service.a.device.clear()
    await late(service, 1)
    if ends_by == "closing the gateway":
        assert service.admission.queue("a").running == 1
        service.gateway.close()
    await until(lambda: idle(service))
    service.a.device.set()
    if ends_by == "the limit":
        assert await service.values(item(1)) == [1]
        assert service.a.measured == [1, 1]


async def fill(service: RewardService, scorer: str, *levels: int) -> list[asyncio.Task[list[float | str | None]]]:
    """Hold a scorer with its window of two images, and let the others wait in its queue of four."""
    service.backend.open[scorer].clear()
    called = len(service.backend.called)
    calls = [service.start(*map(item, levels[:2]), scorers=(scorer,))]
    await service.until_called(called + 1)
    if len(levels) > 2:
        calls.append(service.start(*map(item, levels[2:]), scorers=(scorer,)))
        await until(lambda: service.admission.queue(scorer).waiting == len(levels) - 2)
    return calls


async def test_full_queue_refuses_before_work_and_leaves_no_claim(service: RewardService) -> None:
    calls = await fill(service, "b", 1, 2, 3, 4, 5)
    with pytest.raises(Overloaded, match="scorer 'b'") as refused:
        await service.gateway.score(ScoreRequest((item(6), item(7)), ("a", "b")))
    assert 1.0 <= refused.value.retry_after_s <= 1.2
    assert service.a.measured == []
    assert service.admission.queue("a").waiting == 0
    service.backend.open["b"].set()
    await asyncio.gather(*calls)
    assert idle(service)
    assert await service.values(item(6), item(7), scorers=("b",)) == [6, 7]


async def test_full_queue_does_not_refuse_cached_scores(service: RewardService) -> None:
    await service.values(item(9))
    calls = await fill(service, "a", 1, 2, 3, 4, 5, 6)
    assert await service.values(item(9)) == [9]
    service.backend.open["a"].set()
    await asyncio.gather(*calls)


async def test_full_queue_does_not_refuse_abandoned_scores(service: RewardService) -> None:
    """A gateway that died gives up its claim; the request that waited for it was admitted before."""
    key = score_keys(item(1), {"a": ORIGIN})["a"]
    assert await service.store.claim([key], 60.0) == [Claim.OWNED]
    waits = service.start(item(1))
    calls = await fill(service, "a", 2, 3, 4, 5, 6, 7)
    await service.store.settle({key: None})
    await until(lambda: service.admission.queue("a").waiting == 5)
    service.backend.open["a"].set()
    assert await waits == [1]
    await asyncio.gather(*calls)
    assert idle(service)


async def test_quota_refusal_names_the_caller(service: RewardService) -> None:
    service.backend.open["a"].clear()
    caller = Caller("run-7", max_images=2)
    first = asyncio.create_task(service.gateway.score(ScoreRequest((item(1), item(2)), ("a",)), caller))
    await service.until_called(1)
    with pytest.raises(Overloaded, match="'run-7' has 2 images in flight"):
        await service.gateway.score(ScoreRequest((item(3),), ("a",)), caller)
    service.backend.open["a"].set()
    await first
    assert values_by(await service.gateway.score(ScoreRequest((item(3),), ("a",)), caller), "a") == [3]


async def test_third_request_of_a_budget_of_two_is_refused(
    service: RewardService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded pixels are held until the work on them has ended, also for a caller that has left."""
    monkeypatch.setattr(quota, "HELD_REQUESTS", 2)
    monkeypatch.setattr(fanout, "KEEP_AFTER_DISCONNECT_S", 3600.0)
    limits = LimitSettings(max_image_pixels=10_000, max_request_pixels=10_000)
    gateway = Gateway(service.backend, ENSEMBLES, limits)
    pixels = gateway._context.pixels

    def start(level: int, scorer: str) -> asyncio.Task[ScoreResponse]:
        image = np.full((100, 100, 3), level, np.uint8)
        return asyncio.create_task(gateway.score(ScoreRequest((ScoreItem(image),), (scorer,))))

    known = await start(9, "a")
    for event in service.backend.open.values():
        event.clear()
    leaves, stays = start(1, "a"), start(2, "b")
    await service.until_called(3)
    leaves.cancel()
    await asyncio.wait([leaves])
    assert pixels.held == 20_000
    with pytest.raises(Overloaded, match=r"holds 20000 decoded pixels and 10000 more exceed the limit 20000 ") as full:
        await start(3, "a")
    assert full.value.retry_after_s == 1.0
    assert (await start(9, "a")).results == known.results, "nothing is decoded for a stored score"
    service.backend.open["a"].set()
    await until(lambda: pixels.held == 10_000)
    assert values_by(await start(3, "a"), "a") == [3]
    service.backend.open["b"].set()
    assert values_by(await stays, "b") == [2]
    assert pixels.held == 0
    gateway.close()


async def test_images_by_digest_score_like_sent_images(service: RewardService) -> None:
    raw, png = np.full((4, 4, 3), 7, np.uint8), encode_png(np.full((4, 4, 3), 8, np.uint8))
    digests = await service.gateway.put_images([raw, png])
    by_digest = [ScoreItem(ImageRef(d), references=(ImageRef(digests[1]), png)) for d in digests]  # type: ignore[arg-type]
    assert await service.values(*by_digest) == [7, 8]
    assert await service.values(ScoreItem(raw, references=(png, png)), ScoreItem(png, references=(png, png))) == [7, 8]
    assert service.a.measured == [7, 8]


async def test_unknown_image_names_all_missing_digests(service: RewardService) -> None:
    (here,) = await service.gateway.put_images([b"here"])
    gone = [digest_of(b"gone"), digest_of(b"lost")]
    items = tuple(ScoreItem(ImageRef(d)) for d in (gone[0], here, gone[1], gone[0]))  # type: ignore[arg-type]
    with pytest.raises(UnknownImage) as refused:
        await service.gateway.score(ScoreRequest(items, ("a",)))
    assert refused.value.digests == tuple(gone)
    assert refused.value.retryable
    assert all(digest in str(refused.value) for digest in gone)
    assert service.backend.called == []


async def test_uploads_have_limits(service: RewardService) -> None:
    with pytest.raises(PayloadTooLarge, match="max_items"):
        await service.gateway.put_images([b""] * 9)
    with pytest.raises(ImageTooLarge, match=r"images\[1\] has 10001 bytes, the limit is 10000"):
        await service.gateway.put_images([b"", bytes(10_001)])
    with pytest.raises(ImageTooLarge, match="30003"):
        await service.gateway.put_images([np.zeros((10_001, 1, 3), np.uint8)])


async def test_stream_sends_each_scorer_then_rewards(service: RewardService) -> None:
    service.backend.open["b"].clear()
    items = tuple(ScoreItem(item(n).image, concept=Concept("person")) for n in (10, 20))
    parts = service.gateway.stream(ScoreRequest(items, ensemble="council", request_id="r"))
    first = [await anext(parts), await anext(parts)]
    assert first == [ScoredItem("r", 0, "a", Score(10.0)), ScoredItem("r", 1, "a", Score(20.0))]
    service.backend.open["b"].set()
    rest = [part async for part in parts]
    assert rest[:2] == [ScoredItem("r", 0, "b", Score(10.0)), ScoredItem("r", 1, "b", Score(20.0))]
    (rewards,) = rest[2:]
    assert isinstance(rewards, Rewards)
    assert [reward.value for reward in rewards.rewards if isinstance(reward, Score)] == [10.0, 20.0]


async def test_stream_sends_cached_scores_first(service: RewardService) -> None:
    await service.values(item(1))
    service.backend.open["a"].clear()
    parts = service.gateway.stream(ScoreRequest((item(2), item(1)), ("a",), request_id="r"))
    assert await anext(parts) == ScoredItem("r", 1, "a", Score(1.0))
    service.backend.open["a"].set()
    assert [part async for part in parts] == [ScoredItem("r", 0, "a", Score(2.0)), Rewards("r", (None, None))]


async def test_a_reader_that_pauses_delays_no_work(service: RewardService) -> None:
    await service.values(item(1))
    parts = service.gateway.stream(ScoreRequest((item(1),), ("a", "b"), request_id="r"))
    assert await anext(parts) == ScoredItem("r", 0, "a", Score(1.0))
    await until(lambda: service.backend.called == ["a", "b"] and not service.store.open_claims)  # and reads no further
    assert await anext(parts) == ScoredItem("r", 0, "b", Score(1.0))
    assert await anext(parts) == Rewards("r", (None,))


async def test_a_reader_that_pauses_holds_no_pixels(service: RewardService) -> None:
    parts = service.gateway.stream(ScoreRequest((item(1), ScoreItem(b"no image")), ("a", "b"), request_id="r"))
    await anext(parts)
    await until(lambda: service.gateway._context.pixels.held == 0)
    assert len([part async for part in parts]) == 4
    assert service.gateway._context.pixels.held == 0


def counted(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


async def test_cache_results_refusals_and_stages_are_counted(service: RewardService) -> None:
    def now() -> dict[str, float]:
        found = {result: counted("synod_cache_total", result=result) for result in ("hit", "shared", "miss")}
        found |= {code: counted("synod_rejects_total", reason=code) for code in ("unknown_image", "deadline_exceeded")}
        stages = ("decode", "queue", "total")
        return found | {stage: counted("synod_stage_seconds_count", stage=stage) for stage in stages}

    before = now()
    calls = await fill(service, "a", 1, 2)
    calls.append(service.start(item(1)))
    await service.gateway.score(ScoreRequest((item(3),), ("a",), timeout_ms=1000))
    service.backend.open["a"].set()
    await asyncio.gather(*calls)
    await service.values(item(2))
    with pytest.raises(UnknownImage):
        await service.values(ScoreItem(ImageRef("gone")))  # type: ignore[arg-type]
    grown = {name: value - before[name] for name, value in now().items()}
    assert [grown[result] for result in ("hit", "shared", "miss")] == [1, 1, 3]
    assert [grown[reason] for reason in ("unknown_image", "deadline_exceeded")] == [1, 1]
    assert [grown[stage] for stage in ("decode", "queue", "total")] == [4, 1, 5]


async def test_reward_health_groups_items_by_prompt(service: RewardService) -> None:
    def now() -> dict[str, float]:
        sums = ("scores", "failed", "groups", "flat_groups", "saturated")
        return {of: counted("synod_reward_sums_total", scorer="b", of=of) for of in sums}

    before = now()
    flat, spread = [item(0, "flat"), item(0, "flat")], [item(0, "spread"), item(1, "spread")]
    await service.values(*flat, *spread, item(0, "alone"), ScoreItem(b"bad", "flat"), scorers=("b",))
    grown = {name: value - before[name] for name, value in now().items()}
    assert grown == {"scores": 5, "failed": 1, "groups": 2, "flat_groups": 1, "saturated": 5}
