"""Order, bounds, quotas and the way back in, on a clock that the test turns."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway import admission
from services.gateway.admission import (
    LONGEST_RETRY_S,
    PATIENCE_S,
    RATE_WINDOW_S,
    Admission,
    Caller,
    Lane,
    Priority,
    Window,
)
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
    """Calls that wait in a lane, remember the order in which they went, and stay under way until ended."""

    def __init__(self, lane: Lane) -> None:
        self.lane, self.went = lane, list[str]()
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, name: str, images: int = 1, priority: Priority = "training") -> None:
        ticket = self.lane.reserve(images, priority)
        self.ends[name] = asyncio.Event()

        async def call() -> None:
            try:
                await ticket.turn()
                self.went.append(name)
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


async def test_a_lane_lets_its_window_through_and_the_rest_in_order(clock: Clock) -> None:
    calls = Calls(Lane(window=4, max_waiting=100))
    for name, images in (("a", 3), ("b", 3), ("c", 1), ("d", 1)):
        await calls.start(name, images)
    assert calls.went == ["a", "b"]  # b went while there was any room
    assert (calls.lane.running, calls.lane.waiting) == (6, 2)
    await calls.end("a")
    assert calls.went == ["a", "b", "c"]
    for name in "bcd":
        await calls.end(name)
    assert (calls.lane.running, calls.lane.waiting) == (0, 0)


async def test_large_calls_leave_no_replica_idle(clock: Clock) -> None:
    calls = Calls(Lane(window=4, max_waiting=10_000, calls=2))
    for name in "abc":
        await calls.start(name, 256)
    assert calls.went == ["a", "b"]
    await calls.end("a")
    assert calls.went == ["a", "b", "c"]
    await calls.end("b")
    await calls.end("c")
    assert (calls.lane.running, calls.lane.waiting) == (0, 0)


async def test_training_goes_before_evaluation_that_waits(clock: Clock) -> None:
    calls = Calls(Lane(1, 100))
    await calls.start("running")
    await calls.start("evaluation", priority="evaluation")
    clock.now_s += PATIENCE_S["evaluation"] - 0.1
    await calls.start("training")
    for name in ("running", "training", "evaluation"):
        await calls.end(name)
    assert calls.went == ["running", "training", "evaluation"]


async def test_evaluation_does_not_starve_under_endless_training(clock: Clock) -> None:
    """A training call a second, each one second under way: evaluation goes once its patience is over."""
    calls = Calls(Lane(1, 100))
    await calls.start("t0")
    await calls.start("evaluation", priority="evaluation")
    for second in range(1, 30):
        clock.now_s += 1
        await calls.start(f"t{second}")
        await calls.end(calls.went[-1])
    assert calls.went.index("evaluation") == 10
    for task in calls.tasks.values():
        task.cancel()


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["training", "evaluation"]), st.floats(0, 3)), min_size=1, max_size=30))
def test_nobody_is_overtaken_by_work_that_came_a_patience_later(arrivals: list[tuple[Priority, float]]) -> None:
    clock = Clock()

    async def scenario() -> tuple[list[str], list[float]]:
        calls = Calls(Lane(1, 10_000))
        await calls.start("running")
        came = []
        for n, (priority, pause_s) in enumerate(arrivals):
            clock.now_s += pause_s
            came.append(clock.now_s)
            await calls.start(str(n), priority=priority)
        await calls.end("running")
        for _ in arrivals:
            await calls.end(calls.went[-1])
        return calls.went[1:], came

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, "_now_s", clock)
        went, came = asyncio.run(scenario())
    assert sorted(went, key=int) == [str(n) for n in range(len(arrivals))]
    for place, name in enumerate(went):
        overtaken_by = [came[int(earlier)] for earlier in went[:place]]
        assert all(other <= came[int(name)] + PATIENCE_S["evaluation"] for other in overtaken_by)


async def test_retry_after_is_the_time_to_drain(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 images a second were served; 32 wait: 4 s, within the jitter."""
    lane = Lane(8, 32)
    calls = Calls(lane)
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
        with pytest.raises(Overloaded, match="32 images wait and 25 more pass the limit 32") as refused:
            lane.reserve(25)
        drawn.append((share, refused.value.retry_after_s or 0.0))
    assert drawn == [(0.0, pytest.approx(0.8 * 4)), (1.0, pytest.approx(1.2 * 4))]
    assert lane.waiting == 32
    for task in calls.tasks.values():
        task.cancel()


async def test_retry_after_is_one_second_without_recent_work(clock: Clock) -> None:
    lane = Lane(1, 4)
    calls = Calls(lane)
    await calls.start("served")
    await calls.end("served")
    clock.now_s += RATE_WINDOW_S + 1
    await calls.start("running")
    await calls.start("waiting", 4)
    with pytest.raises(Overloaded) as refused:
        lane.reserve(1000)
    assert 1.0 <= (refused.value.retry_after_s or 0.0) <= 1.2
    for task in calls.tasks.values():
        task.cancel()


async def test_retry_after_is_at_most_a_minute(clock: Clock) -> None:
    lane = Lane(1, 1000)
    calls = Calls(lane)
    await calls.start("served")
    clock.now_s += 20
    await calls.end("served")
    await calls.start("running")
    await calls.start("waiting", 1000)
    with pytest.raises(Overloaded) as refused:
        lane.reserve(1)
    assert refused.value.retry_after_s == LONGEST_RETRY_S
    for task in calls.tasks.values():
        task.cancel()


async def test_evaluation_cannot_lock_training_out(clock: Clock) -> None:
    lane = Lane(1, 10)
    calls = Calls(lane)
    await calls.start("running")
    await calls.start("e", 5, "evaluation")
    with pytest.raises(Overloaded, match="limit 5 of evaluation"):
        lane.reserve(1, "evaluation")
    lane.reserve(5, "training").release()
    for task in calls.tasks.values():
        task.cancel()


async def test_an_empty_queue_takes_any_one_call(clock: Clock) -> None:
    lane = Lane(1, 4)
    assert lane.reserve(1000).images == 1000


async def test_who_leaves_never_goes(clock: Clock) -> None:
    lane = Lane(1, 100)
    calls = Calls(lane)
    await calls.start("running")
    await calls.start("left", 3)
    await calls.start("last")
    calls.tasks["left"].cancel()
    await asyncio.wait([calls.tasks["left"]])
    assert lane.waiting == 1
    await calls.end("running")
    assert calls.went == ["running", "last"]
    await calls.end("last")
    assert (lane.running, lane.waiting) == (0, 0)


async def test_a_call_that_leaves_in_the_instant_of_its_turn_frees_the_way(clock: Clock) -> None:
    lane = Lane(1, 100)
    calls = Calls(lane)
    await calls.start("first")
    await calls.start("second")
    await calls.start("third")
    calls.ends["first"].set()
    while not lane.running or len(lane._queue) == 2:
        await asyncio.sleep(0)
    calls.tasks["second"].cancel()  # its turn is granted, it has not run since
    await settled()
    assert calls.went == ["first", "third"]
    await calls.end("third")
    assert (lane.running, lane.waiting) == (0, 0)


async def test_a_reserved_place_may_be_given_up_twice(clock: Clock) -> None:
    lane = Lane(1, 100)
    ticket = lane.reserve(3)
    ticket.release()
    ticket.release()
    assert lane.waiting == 0


async def test_the_age_of_the_queue_is_told_with_each_change(clock: Clock) -> None:
    told: list[float | None] = []
    calls = Calls(Lane(1, 100, changed=told.append))
    await calls.start("running")
    clock.now_s += 3
    await calls.start("first")
    clock.now_s += 3
    await calls.start("second")
    assert told[-3:] == [None, 1003, 1003]
    await calls.end("running")
    assert told[-1] == 1006
    calls.tasks["second"].cancel()
    await settled()
    assert told[-1] is None
    await calls.end("first")


async def test_places_are_given_in_all_lanes_or_in_none(clock: Clock) -> None:
    subject = Admission({"a": Window(1, 1), "b": Window(1, 1)}, max_waiting=4)
    held = subject.reserve({"b": 4}, "training")
    with pytest.raises(Overloaded, match="scorer 'b'"):
        subject.reserve({"a": 2, "b": 2}, "training")
    assert subject.lane("a").waiting == 0
    held["b"].release()
    assert set(subject.reserve({"a": 2, "b": 2}, "training")) == {"a", "b"}


def test_a_quota_counts_the_images_under_way_of_one_name() -> None:
    subject = Admission({}, 100)
    caller, other = Caller("run-7", max_images=10), Caller("run-8", max_images=10)
    with pytest.raises(PayloadTooLarge, match="quota of 'run-7' is 10"), subject.quota(caller, 11):
        pass
    with subject.quota(caller, 6):
        with pytest.raises(Overloaded, match="'run-7' has 6 images under way and 5 more"), subject.quota(caller, 5):
            pass
        with subject.quota(caller, 4), subject.quota(other, 10):
            pass
    with subject.quota(caller, 10), subject.quota(Caller(), 10**6):
        pass
