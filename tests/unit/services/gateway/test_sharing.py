"""Equal work is done once: scores kept, work under way shared, pictures by digest; and what is never shared."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from services.backends import LocalBackend
from services.gateway import fanout, metrics
from services.gateway.admission import Admission, Caller, Window
from services.gateway.core import Gateway
from services.gateway.keys import keys_of
from services.gateway.store import Claim, MemoryStore
from services.scorers.base import ScorerSpec
from services.settings import EnsembleSettings, LimitSettings, ServerSettings
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

ENSEMBLES = {"council": EnsembleSettings(by_kind={"person": {"a": 0.5, "b": 0.5}})}


@dataclass
class Steered:
    """A picture's first sample; the prompt 'poison' raises. Remembers what it measured, counts its runs, and waits for
    `device` in each."""

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
    """A backend whose calls of a scorer wait for `open`; remembers who was cancelled before."""

    def __init__(self, scorers: dict[str, Steered]) -> None:
        super().__init__(scorers)
        self.open = {name: asyncio.Event() for name in scorers}
        self.called: list[str] = []
        self.cancelled: list[str] = []
        self.next_outcome: list[ScoreFailure] = []
        for event in self.open.values():
            event.set()

    async def score(  # type: ignore[override]
        self, scorer: str, staged: object, indexes: Sequence[int], timeout_s: float, traceparent: str | None = None
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


@dataclass
class Plane:
    gateway: Gateway
    backend: HeldBackend
    a: Steered
    b: Steered
    store: MemoryStore

    async def values(self, *items: ScoreItem, scorers: tuple[str, ...] = ("a",)) -> list[float | str]:
        response = await self.gateway.score(ScoreRequest(items, scorers, timeout_ms=20_000))
        return told(response, scorers[0])

    def start(self, *items: ScoreItem, scorers: tuple[str, ...] = ("a",)) -> asyncio.Task[list[float | str]]:
        return asyncio.create_task(self.values(*items, scorers=scorers))

    async def until_called(self, times: int) -> None:
        await until(lambda: len(self.backend.called) >= times)


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    a, b = (Steered(ScorerSpec(name, ("image",), 0.0, 1.0, "a test", "a test", Origin("m", "p"))) for name in "ab")
    backend, store = HeldBackend({"a": a, "b": b}), MemoryStore(2**20, 1000)
    limits = LimitSettings(max_items=8, max_image_bytes=10_000, max_image_pixels=10_000)
    admission = Admission({"a": Window(2, 1), "b": Window(2, 1)}, max_waiting=4)
    gateway = Gateway(backend, ENSEMBLES, limits, ServerSettings(), admission=admission, store=store)
    yield Plane(gateway, backend, a, b, store)
    gateway.close()
    await backend.close()


def item(level: int, prompt: str | None = None) -> ScoreItem:
    return ScoreItem(np.full((4, 4, 3), level, np.uint8), prompt)


def value(item: ScoreItem) -> float:
    return float(item.pixels()[0, 0, 0])


def told(response: ScoreResponse, scorer: str) -> list[float | str]:
    outcomes = [result.scores[scorer] for result in response.results]
    return [o.value if isinstance(o, Score) else o.code for o in outcomes]


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.001)


def idle(plane: Plane) -> bool:
    lanes = [plane.gateway._means.admission.lane(name) for name in "ab"]
    return not any(lane.waiting or lane.running for lane in lanes) and not plane.store._leases


async def test_a_resubmit_costs_no_device_work_and_gives_the_same_numbers(plane: Plane) -> None:
    request = ScoreRequest((item(1), item(2)), ("a", "b"), weights={"a": 0.5}, request_id="lost-reply")
    first = await plane.gateway.score(request)
    assert await plane.gateway.score(request) == first
    assert (plane.a.measured, plane.b.measured) == ([1, 2], [1, 2])
    assert idle(plane)


async def test_only_what_is_new_is_measured(plane: Plane) -> None:
    await plane.values(item(1), item(3))
    assert await plane.values(item(1), item(2), item(3)) == [1, 2, 3]
    assert await plane.values(item(1, "another prompt")) == [1]
    assert sorted(plane.a.measured) == [1, 1, 2, 3]


async def test_equal_requests_at_once_share_the_work(plane: Plane) -> None:
    plane.backend.open["a"].clear()
    calls = [plane.start(item(1), item(2)) for _ in range(5)]
    await plane.until_called(1)
    plane.backend.open["a"].set()
    assert await asyncio.gather(*calls) == [[1, 2]] * 5
    assert sorted(plane.a.measured) == [1, 2]
    assert plane.backend.called == ["a"]


async def test_requests_that_overlap_share_what_they_have_in_common(plane: Plane) -> None:
    plane.backend.open["a"].clear()
    first = plane.start(item(1), item(2))
    await plane.until_called(1)
    second = plane.start(item(2), item(3), item(1))
    plane.backend.open["a"].set()
    assert await first + await second == [1, 2, 2, 3, 1]
    assert sorted(plane.a.measured) == [1, 2, 3]


async def test_an_item_that_occurs_twice_in_a_request_is_measured_once(plane: Plane) -> None:
    assert await plane.values(item(1), item(2), item(2), item(1)) == [1, 2, 2, 1]
    assert plane.a.measured == [1, 2]
    poisoned = item(9, "poison")
    assert await plane.values(*[poisoned] * 8) == ["scorer_failed"] * 8
    assert plane.a.batches == 2
    bad = ScoreItem(b"no picture")
    assert await plane.values(bad, item(5), bad) == ["bad_image", 5, "bad_image"]
    assert idle(plane)


async def test_a_failure_is_not_kept(plane: Plane) -> None:
    poisoned = item(1, "poison")
    for _ in range(2):
        assert await plane.values(poisoned) == ["scorer_failed"]
    assert plane.a.batches == 2


async def test_a_retryable_failure_is_its_callers_alone(plane: Plane) -> None:
    """The one who waited asks for itself, and is answered."""
    plane.backend.open["a"].clear()
    plane.backend.next_outcome = [ScoreFailure("deadline_exceeded", "late", retryable=True)]
    first = plane.start(item(1))
    await plane.until_called(1)
    second = plane.start(item(1))
    await until(lambda: plane.store._leases)
    plane.backend.open["a"].set()
    assert await first == ["deadline_exceeded"]
    assert await second == [1]
    assert idle(plane)


async def test_who_waits_for_a_caller_that_left_takes_over(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "LINGER_S", 0.01)
    plane.backend.open["a"].clear()
    first = plane.start(item(1))
    await plane.until_called(1)
    second = plane.start(item(1))
    await asyncio.sleep(0.02)
    first.cancel()
    await plane.until_called(2)
    assert plane.backend.cancelled == ["a"]
    plane.backend.open["a"].set()
    assert await second == [1]
    assert plane.a.measured == [1]
    assert idle(plane)


async def test_a_resubmit_finds_the_work_of_the_call_it_replaces(plane: Plane) -> None:
    plane.backend.open["a"].clear()
    lost = plane.start(item(1))
    await plane.until_called(1)
    lost.cancel()
    await asyncio.wait([lost])
    again = plane.start(item(1))
    await until(lambda: plane.store._leases)
    plane.backend.open["a"].set()
    assert await again == [1]
    assert plane.backend.called == ["a"]
    assert plane.backend.cancelled == []


async def test_a_caller_that_leaves_takes_its_waiting_work_along_at_once(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window is 2: the third call waits in the lane, and never reaches the backend."""
    monkeypatch.setattr(fanout, "LINGER_S", 3600.0)
    plane.backend.open["a"].clear()
    under_way = plane.start(item(1), item(2))
    await plane.until_called(1)
    waiting = plane.start(item(3))
    await until(lambda: plane.gateway._means.admission.lane("a")._queue)
    waiting.cancel()
    await asyncio.wait([waiting])
    await until(lambda: not plane.gateway._means.admission.lane("a").waiting)
    plane.backend.open["a"].set()
    assert await under_way == [1, 2]
    assert plane.a.measured == [1, 2]
    await until(lambda: idle(plane))


async def test_work_whose_deadline_passes_in_the_queue_never_reaches_the_backend(plane: Plane) -> None:
    plane.backend.open["a"].clear()
    under_way = plane.start(item(1), item(2))
    await plane.until_called(1)
    late = await plane.gateway.score(ScoreRequest((item(3),), ("a",), timeout_ms=1000))
    assert told(late, "a") == ["deadline_exceeded"]
    plane.backend.open["a"].set()
    await under_way
    assert plane.a.measured == [1, 2]
    assert idle(plane)


async def late(plane: Plane, level: int, timeout_ms: int = 500) -> None:
    """A request whose deadline passes."""
    response = await plane.gateway.score(ScoreRequest((item(level),), ("a",), timeout_ms=timeout_ms))
    failure = response.results[0].scores["a"]
    assert isinstance(failure, ScoreFailure)
    assert (failure.code, failure.retryable) == ("deadline_exceeded", True)


async def test_what_is_on_the_device_at_the_deadline_is_kept_and_what_waits_is_dropped(plane: Plane) -> None:
    """The second call waits in the batcher's queue, the third in the lane. All are answered while the device runs."""
    plane.a.device.clear()
    calls = [asyncio.create_task(late(plane, 1))]
    await until(lambda: plane.a.batches)
    calls += [asyncio.create_task(late(plane, n, 1000)) for n in (2, 3)]
    await until(lambda: plane.gateway._means.admission.lane("a").waiting == 1)
    await asyncio.gather(*calls)
    lane = plane.gateway._means.admission.lane("a")
    await until(lambda: (lane.running, lane.waiting, len(plane.store._leases)) == (1, 0, 1))
    retry = plane.start(item(1))
    await asyncio.sleep(0)
    plane.a.device.set()
    assert await retry == [1]
    assert await plane.values(item(1)) == [1]
    assert (plane.a.measured, plane.a.batches) == ([1], 1)
    assert idle(plane)
    assert not plane.gateway._means.under_way
    assert await plane.values(item(2)) == [2]


async def test_work_past_its_deadline_is_given_up_in_the_end(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "FINISH_S", 0.01)
    plane.a.device.clear()
    await late(plane, 1)
    await until(lambda: idle(plane) and not plane.gateway._means.under_way)
    plane.a.device.set()
    assert await plane.values(item(1)) == [1]
    assert plane.a.measured == [1, 1]


async def test_work_past_its_deadline_ends_with_its_gateway(plane: Plane) -> None:
    plane.a.device.clear()
    await late(plane, 1)
    assert len(plane.gateway._means.under_way) == 1
    plane.gateway.close()
    await until(lambda: idle(plane) and not plane.gateway._means.under_way)
    plane.a.device.set()


async def test_what_cannot_be_kept_ends_with_its_deadline(plane: Plane) -> None:
    plane.store.keeps_scores = False
    plane.a.device.clear()
    await late(plane, 1)
    await until(lambda: idle(plane) and not plane.gateway._means.under_way)
    plane.a.device.set()


async def test_a_full_lane_refuses_the_request_before_any_work_and_leaves_no_claim(plane: Plane) -> None:
    plane.backend.open["b"].clear()
    calls = [plane.start(item(1), item(2), scorers=("b",))]
    await plane.until_called(1)
    calls.append(plane.start(item(3), item(4), item(5), scorers=("b",)))
    await until(lambda: plane.gateway._means.admission.lane("b").waiting == 3)
    with pytest.raises(Overloaded, match="scorer 'b'") as refused:
        await plane.gateway.score(ScoreRequest((item(6), item(7)), ("a", "b")))
    assert refused.value.retry_after_s == 1.0
    assert plane.a.measured == []
    assert plane.gateway._means.admission.lane("a").waiting == 0
    plane.backend.open["b"].set()
    await asyncio.gather(*calls)
    assert idle(plane)
    assert await plane.values(item(6), item(7), scorers=("b",)) == [6, 7]


async def test_what_is_known_is_answered_even_when_the_lane_is_full(plane: Plane) -> None:
    await plane.values(item(9))
    plane.backend.open["a"].clear()
    calls = [plane.start(item(1), item(2))]
    await plane.until_called(2)
    calls.append(plane.start(item(3), item(4), item(5), item(6)))
    await until(lambda: plane.gateway._means.admission.lane("a").waiting == 4)
    assert await plane.values(item(9)) == [9]
    plane.backend.open["a"].set()
    await asyncio.gather(*calls)


async def test_what_another_gave_up_is_measured_even_when_the_lane_is_full(plane: Plane) -> None:
    """As when a gateway died: its claim ends, and who waited for it was admitted long ago."""
    origin = plane.a.spec.origin
    assert origin is not None
    key = keys_of(item(1), {"a": origin})["a"]
    assert await plane.store.claim([key], 60.0) == [Claim.MINE]
    waits = plane.start(item(1))
    plane.backend.open["a"].clear()
    calls = [plane.start(item(2), item(3))]
    await plane.until_called(1)
    calls.append(plane.start(item(4), item(5), item(6), item(7)))
    await until(lambda: plane.gateway._means.admission.lane("a").waiting == 4)
    await plane.store.settle({key: None})
    await until(lambda: plane.gateway._means.admission.lane("a").waiting == 5)
    plane.backend.open["a"].set()
    assert await waits == [1]
    await asyncio.gather(*calls)
    assert idle(plane)


async def test_a_quota_is_refused_by_name(plane: Plane) -> None:
    plane.backend.open["a"].clear()
    caller = Caller("run-7", max_images=2)
    first = asyncio.create_task(plane.gateway.score(ScoreRequest((item(1), item(2)), ("a",)), caller))
    await plane.until_called(1)
    with pytest.raises(Overloaded, match="'run-7' has 2 images under way"):
        await plane.gateway.score(ScoreRequest((item(3),), ("a",)), caller)
    plane.backend.open["a"].set()
    await first
    assert told(await plane.gateway.score(ScoreRequest((item(3),), ("a",)), caller), "a") == [3]


async def test_pictures_by_digest_are_scored_as_if_they_were_sent(plane: Plane) -> None:
    raw, png = np.full((4, 4, 3), 7, np.uint8), encode_png(np.full((4, 4, 3), 8, np.uint8))
    digests = await plane.gateway.put_images([raw, png])
    by_digest = [ScoreItem(ImageRef(d), references=(ImageRef(digests[1]), png)) for d in digests]  # type: ignore[arg-type]
    assert await plane.values(*by_digest) == [7, 8]
    assert await plane.values(ScoreItem(raw, references=(png, png)), ScoreItem(png, references=(png, png))) == [7, 8]
    assert plane.a.measured == [7, 8]


async def test_an_unknown_digest_is_told_with_all_that_are_missing(plane: Plane) -> None:
    (here,) = await plane.gateway.put_images([b"here"])
    gone = [digest_of(b"gone"), digest_of(b"lost")]
    items = tuple(ScoreItem(ImageRef(d)) for d in (gone[0], here, gone[1], gone[0]))  # type: ignore[arg-type]
    with pytest.raises(UnknownImage) as refused:
        await plane.gateway.score(ScoreRequest(items, ("a",)))
    assert refused.value.digests == tuple(gone)
    assert refused.value.retryable
    assert all(digest in str(refused.value) for digest in gone)
    assert plane.backend.called == []


async def test_uploads_have_limits(plane: Plane) -> None:
    with pytest.raises(PayloadTooLarge, match="max_items"):
        await plane.gateway.put_images([b""] * 9)
    with pytest.raises(ImageTooLarge, match=r"images\[1\] has 10001 bytes, the limit is 10000"):
        await plane.gateway.put_images([b"", bytes(10_001)])
    with pytest.raises(ImageTooLarge, match="30003"):
        await plane.gateway.put_images([np.zeros((10_001, 1, 3), np.uint8)])


async def test_a_stream_tells_each_scorer_as_it_ends_then_the_rewards(plane: Plane) -> None:
    plane.backend.open["b"].clear()
    items = tuple(ScoreItem(item(n).image, concept=Concept("person")) for n in (10, 20))
    parts = plane.gateway.stream(ScoreRequest(items, ensemble="council", request_id="r"))
    first = [await anext(parts), await anext(parts)]
    assert first == [ScoredItem("r", 0, "a", Score(10.0)), ScoredItem("r", 1, "a", Score(20.0))]
    plane.backend.open["b"].set()
    rest = [part async for part in parts]
    assert rest[:2] == [ScoredItem("r", 0, "b", Score(10.0)), ScoredItem("r", 1, "b", Score(20.0))]
    (rewards,) = rest[2:]
    assert isinstance(rewards, Rewards)
    assert [reward.value for reward in rewards.rewards if isinstance(reward, Score)] == [10.0, 20.0]


async def test_a_stream_tells_what_is_known_before_it_measures_the_rest(plane: Plane) -> None:
    await plane.values(item(1))
    plane.backend.open["a"].clear()
    parts = plane.gateway.stream(ScoreRequest((item(2), item(1)), ("a",), request_id="r"))
    assert await anext(parts) == ScoredItem("r", 1, "a", Score(1.0))
    plane.backend.open["a"].set()
    assert [part async for part in parts] == [ScoredItem("r", 0, "a", Score(2.0)), Rewards("r", (None, None))]


async def test_a_closed_stream_abandons_its_work(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "LINGER_S", 0.0)
    plane.backend.open["b"].clear()
    parts = plane.gateway.stream(ScoreRequest((item(1),), ("a", "b")))
    await anext(parts)
    await parts.aclose()
    await until(lambda: idle(plane))
    assert plane.backend.cancelled == ["b"]


def counted(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


async def test_what_was_known_shared_measured_and_refused_is_counted(plane: Plane) -> None:
    def now() -> dict[str, float]:
        found = {result: counted("synod_cache_total", result=result) for result in ("hit", "shared", "miss")}
        found |= {code: counted("synod_rejects_total", reason=code) for code in ("unknown_image", "deadline_exceeded")}
        stages = ("decode", "queue", "total")
        return found | {stage: counted("synod_stage_seconds_count", stage=stage) for stage in stages}

    before = now()
    plane.backend.open["a"].clear()
    calls = [plane.start(item(1), item(2))]
    await plane.until_called(1)
    calls.append(plane.start(item(1)))
    await plane.gateway.score(ScoreRequest((item(3),), ("a",), timeout_ms=1000))
    plane.backend.open["a"].set()
    await asyncio.gather(*calls)
    await plane.values(item(2))
    with pytest.raises(UnknownImage):
        await plane.values(ScoreItem(ImageRef("gone")))  # type: ignore[arg-type]
    grown = {name: value - before[name] for name, value in now().items()}
    assert grown == {
        "hit": 1,
        "shared": 1,
        "miss": 3,
        "unknown_image": 1,
        "deadline_exceeded": 1,
        "decode": 4,
        "queue": 1,
        "total": 5,
    }


async def test_reward_health_counts_items_of_equal_prompt_as_a_group(plane: Plane) -> None:
    def now() -> dict[str, float]:
        sums = ("scores", "failed", "groups", "flat_groups", "saturated")
        return {of: counted("synod_reward_sums_total", scorer="b", of=of) for of in sums}

    before = now()
    flat, spread = [item(0, "flat"), item(0, "flat")], [item(0, "spread"), item(1, "spread")]
    await plane.values(*flat, *spread, item(0, "alone"), ScoreItem(b"bad", "flat"), scorers=("b",))
    grown = {name: value - before[name] for name, value in now().items()}
    assert grown == {"scores": 5, "failed": 1, "groups": 2, "flat_groups": 1, "saturated": 5}


async def test_scorers_of_unknown_origin_are_asked_every_time(plane: Plane) -> None:
    plane.backend._specs = {name: ScorerSpec(name, ("image",), 0, 1, "", "") for name in "ab"}
    assert await plane.values(item(1), item(1)) == [1, 1]
    assert await plane.values(item(1)) == [1]
    assert plane.a.measured == [1, 1, 1]
