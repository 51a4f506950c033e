"""Queues keep order, limits and quotas, and say when to retry, on a clock that the test sets."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway import admission
from services.gateway.admission import AGING_S, LONGEST_RETRY_S, RATE_WINDOW_S, Admission, Priority, ScorerQueue, Window
from services.gateway.quota import Caller, DecodedPixels, Quotas
from synod.errors import Overloaded, PayloadTooLarge


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(admission, "_now_s", clock)
    return clock


class Calls:
    """Calls that wait in a queue, record the order in which they start, and run until `end`."""

    def __init__(self, queue: ScorerQueue) -> None:
        self.queue, self.started = queue, list[str]()
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, name: str, images: int = 1, priority: Priority = "training") -> None:
        ticket = self.queue.reserve(images, priority)
        self.ends[name] = asyncio.Event()

        async def call() -> None:
            try:
                await ticket.turn()
                self.started.append(name)
                await self.ends[name].wait()
            finally:
                ticket.release()

        self.tasks[name] = asyncio.create_task(call())
        await settled()

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await self.tasks[name]
        await settled()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_queue_fills_its_window_in_order_of_arrival(clock: Clock) -> None:
    calls = Calls(ScorerQueue(window=4, max_waiting=100))
    for name, images in (("a", 3), ("b", 3), ("c", 1), ("d", 1)):
        await calls.start(name, images)
    assert calls.started == ["a", "b"]  # b starts while any part of the window is free
    assert (calls.queue.running, calls.queue.waiting) == (6, 2)
    await calls.end("a")
    assert calls.started == ["a", "b", "c"]
    for name in "bcd":
        await calls.end(name)
    assert (calls.queue.running, calls.queue.waiting) == (0, 0)


async def test_large_calls_run_side_by_side(clock: Clock) -> None:
    calls = Calls(ScorerQueue(window=4, max_waiting=10_000, calls=2))
    for name in "abc":
        await calls.start(name, 256)
    assert calls.started == ["a", "b"]
    await calls.end("a")
    assert calls.started == ["a", "b", "c"]
    await calls.end("b")
    await calls.end("c")
    assert (calls.queue.running, calls.queue.waiting) == (0, 0)


async def test_training_overtakes_waiting_evaluation(clock: Clock) -> None:
    calls = Calls(ScorerQueue(1, 100))
    await calls.start("running")
    await calls.start("evaluation", priority="evaluation")
    clock.now_s += AGING_S["evaluation"] - 0.1
    await calls.start("training")
    for name in ("running", "training", "evaluation"):
        await calls.end(name)
    assert calls.started == ["running", "training", "evaluation"]


async def test_evaluation_does_not_starve(clock: Clock) -> None:
    """A training call arrives each second and runs for a second; evaluation starts after its aging time."""
    calls = Calls(ScorerQueue(1, 100))
    await calls.start("t0")
    await calls.start("evaluation", priority="evaluation")
    for second in range(1, 30):
        clock.now_s += 1
        await calls.start(f"t{second}")
        await calls.end(calls.started[-1])
    assert calls.started.index("evaluation") == 10


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["training", "evaluation"]), st.floats(0, 3)), min_size=1, max_size=30))
def test_only_work_within_the_aging_time_overtakes(arrivals: list[tuple[Priority, float]]) -> None:
    clock = Clock()

    async def scenario() -> tuple[list[str], list[float]]:
        calls = Calls(ScorerQueue(1, 10_000))
        await calls.start("running")
        arrived = []
        for n, (priority, pause_s) in enumerate(arrivals):
            clock.now_s += pause_s
            arrived.append(clock.now_s)
            await calls.start(str(n), priority=priority)
        await calls.end("running")
        for _ in arrivals:
            await calls.end(calls.started[-1])
        return calls.started[1:], arrived

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, "_now_s", clock)
        started, arrived = asyncio.run(scenario())
    assert sorted(started, key=int) == [str(n) for n in range(len(arrivals))]
    for place, name in enumerate(started):
        overtaken_by = [arrived[int(earlier)] for earlier in started[:place]]
        assert all(other <= arrived[int(name)] + AGING_S["evaluation"] for other in overtaken_by)


async def test_retry_after_is_the_time_to_drain(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 images a second were served; 32 wait: 4 s, within the jitter."""
    queue = ScorerQueue(8, 32)
    calls = Calls(queue)
    for n in range(20):
        await calls.start(f"served{n}", 8)
        clock.now_s += 1
        await calls.end(f"served{n}")
    clock.now_s += 1
    await calls.start("running", 8)
    await calls.start("waiting", 32)
    drawn = list[tuple[float, float]]()
    for share in (0.0, 1.0):
        monkeypatch.setattr(random, "uniform", lambda low, high, share=share: low + share * (high - low))
        with pytest.raises(Overloaded, match="32 images wait and 25 more exceed the limit 32") as refused:
            queue.reserve(25)
        drawn.append((share, refused.value.retry_after_s or 0.0))
    assert drawn == [(0.0, pytest.approx(0.8 * 4)), (1.0, pytest.approx(1.2 * 4))]
    assert queue.waiting == 32


@pytest.mark.parametrize(
    ("served_s", "idle_s", "low", "high"), [(20, 0, LONGEST_RETRY_S, LONGEST_RETRY_S), (0, RATE_WINDOW_S + 1, 1.0, 1.2)]
)
async def test_retry_after_has_limits(clock: Clock, served_s: float, idle_s: float, low: float, high: float) -> None:
    """It is a minute for slow work, and a second without recent work."""
    queue = ScorerQueue(1, 1000)
    calls = Calls(queue)
    await calls.start("served")
    clock.now_s += served_s
    await calls.end("served")
    clock.now_s += idle_s
    await calls.start("running")
    await calls.start("waiting", 1000)
    with pytest.raises(Overloaded) as refused:
        queue.reserve(1)
    assert low <= (refused.value.retry_after_s or 0.0) <= high


async def test_evaluation_fills_only_its_share_of_the_queue(clock: Clock) -> None:
    queue = ScorerQueue(1, 10)
    calls = Calls(queue)
    await calls.start("running")
    await calls.start("e", 5, "evaluation")
    with pytest.raises(Overloaded, match="limit 5 of evaluation"):
        queue.reserve(1, "evaluation")
    queue.reserve(5, "training").release()


async def test_empty_queue_accepts_any_call(clock: Clock) -> None:
    queue = ScorerQueue(1, 4)
    ticket = queue.reserve(1000)
    assert ticket.images == queue.waiting == 1000
    for _ in range(2):
        ticket.release()
        assert queue.waiting == 0


async def test_cancelled_ticket_is_never_admitted(clock: Clock) -> None:
    queue = ScorerQueue(1, 100)
    calls = Calls(queue)
    await calls.start("running")
    await calls.start("left", 3)
    await calls.start("last")
    calls.tasks["left"].cancel()
    await asyncio.wait([calls.tasks["left"]])
    assert queue.waiting == 1
    await calls.end("running")
    assert calls.started == ["running", "last"]
    await calls.end("last")
    assert (queue.running, queue.waiting) == (0, 0)


async def test_ticket_cancelled_at_its_turn_starts_the_next(clock: Clock) -> None:
    queue = ScorerQueue(1, 100)
    calls = Calls(queue)
    for name in ("first", "second", "third"):
        await calls.start(name)
    calls.ends["first"].set()
    while queue.waiting == 2:
        await asyncio.sleep(0)
    calls.tasks["second"].cancel()  # it may start, but has not run yet
    await settled()
    assert calls.started == ["first", "third"]
    await calls.end("third")
    assert (queue.running, queue.waiting) == (0, 0)


async def test_each_change_reports_the_arrival_of_the_next_call(clock: Clock) -> None:
    reported: list[float | None] = []
    calls = Calls(ScorerQueue(1, 100, changed=reported.append))
    await calls.start("running")
    clock.now_s += 3
    await calls.start("first")
    clock.now_s += 3
    await calls.start("second")
    assert reported[-3:] == [None, 1003, 1003]
    await calls.end("running")
    assert reported[-1] == 1006
    calls.tasks["second"].cancel()
    await settled()
    assert reported[-1] is None
    await calls.end("first")


async def test_places_are_reserved_in_all_queues_or_none(clock: Clock) -> None:
    subject = Admission({"a": Window(1, 1), "b": Window(1, 1)}, max_waiting=4)
    held = subject.reserve({"b": 4}, "training")
    with pytest.raises(Overloaded, match="scorer 'b'"):
        subject.reserve({"a": 2, "b": 2}, "training")
    assert subject.queue("a").waiting == 0
    held["b"].release()
    assert set(subject.reserve({"a": 2, "b": 2}, "training")) == {"a", "b"}


def test_quota_counts_images_in_flight_by_name() -> None:
    subject = Quotas()
    caller, other = Caller("run-7", max_images=10), Caller("run-8", max_images=10)
    with pytest.raises(PayloadTooLarge, match="quota of 'run-7' is 10"), subject.use(caller, 11):
        pass
    with subject.use(caller, 6):
        with pytest.raises(Overloaded, match="'run-7' has 6 images in flight and 5 more"), subject.use(caller, 5):
            pass
        with subject.use(caller, 4), subject.use(other, 10):
            pass
    with subject.use(caller, 10), subject.use(Caller(), 10**6):
        pass


def test_quota_refusal_says_when_to_retry() -> None:
    subject, caller = Quotas(), Caller("run-7", max_images=1)
    with subject.use(caller, 1), pytest.raises(Overloaded) as refused, subject.use(caller, 1):
        pass
    assert refused.value.retry_after_s == 1.0


def test_decoded_pixels_of_four_requests_are_held() -> None:
    subject = DecodedPixels(100)
    for pixels in (300, 100):
        subject.take(pixels)
    with pytest.raises(Overloaded, match=r"holds 400 decoded pixels and 1 more .* limit 400 .*; retry later") as full:
        subject.take(1)
    assert (full.value.retry_after_s, subject.held) == (1.0, 400)
    subject.take(0)
    for pixels in (300, 100):
        subject.release(pixels)
    subject.take(1000)  # where none are held, any number is accepted
    assert subject.held == 1000
