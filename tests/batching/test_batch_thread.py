"""Several batchers that share a thread: one batch at a time, in turn, with separate queues and limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.batching import Batcher, BatchThread
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import Overloaded
from tests.outcomes import values

Calls = list[tuple[int, int]]  # (batcher, items) of each call


def numbered(numbers: Sequence[int]) -> list[ScoreItem]:
    return [ScoreItem(prompt=str(n)) for n in numbers]


def number(item: ScoreItem) -> int:
    return int(item.prompt or "")


class Recorder:
    """Batchers on one thread; records their batches, and raises for items in `poison`."""

    def __init__(self, count: int, max_images: int, poison: frozenset[int] = frozenset()) -> None:
        self.thread = BatchThread()
        self.batches: list[tuple[int, list[int]]] = []
        self.running = self.most = 0
        self.poison = poison
        self.open = threading.Event()
        self.open.set()
        self.batchers = [
            Batcher(self.run_of(k), max_images=max_images, wait_s=0.0, max_queued=100, thread=self.thread)
            for k in range(count)
        ]

    def run_of(self, k: int):  # type: ignore[no-untyped-def]
        def run(items: Sequence[ScoreItem]) -> list[Outcome]:
            self.running += 1
            self.most = max(self.most, self.running)
            self.batches.append((k, [number(item) for item in items]))
            assert self.open.wait(20)
            self.running -= 1
            if self.poison & set(self.batches[-1][1]):
                raise ValueError("poison")
            return [Score(float(1000 * k + number(item))) for item in items]

        return run

    async def begun(self, batches: int) -> None:
        async with asyncio.timeout(20):
            while len(self.batches) < batches:
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        for one in self.batchers:
            await one.close()
        self.thread.close()


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=16),
    max_images=st.integers(1, 8),
    poison=st.frozensets(st.integers(0, 60)),
)
def test_every_item_is_scored_once_by_its_own_batcher(calls: Calls, max_images: int, poison: frozenset[int]) -> None:
    """Whatever the calls, batches never overlap or mix batchers, and an item fails only where it raises alone."""
    subject = Recorder(4, max_images, poison)
    starts = [sum(size for _, size in calls[:i]) for i in range(len(calls))]

    async def scenario() -> list[list[Outcome]]:
        answers = await asyncio.gather(
            *(
                subject.batchers[k].score(numbered(range(start, start + size)))
                for (k, size), start in zip(calls, starts, strict=True)
            )
        )
        await subject.close()
        return answers

    for (k, size), start, outcomes in zip(calls, starts, asyncio.run(scenario()), strict=True):
        expected = range(start, start + size)
        assert values(outcomes) == ["scorer_failed" if n in poison else 1000.0 * k + n for n in expected]
    assert subject.most == 1
    assert all(len(batch) <= max_images for _, batch in subject.batches)


async def test_items_that_wait_for_the_turn_join_one_batch() -> None:
    """A batch is formed when its turn comes, not when its first item arrives."""
    subject = Recorder(2, 8)
    subject.open.clear()
    first = asyncio.create_task(subject.batchers[0].score(numbered([0])))
    await subject.begun(1)
    rest = []
    for n in (1, 2, 3):
        rest.append(asyncio.create_task(subject.batchers[1].score(numbered([n]))))
        await asyncio.sleep(0.005)
    subject.open.set()
    assert [values(o) for o in await asyncio.gather(first, *rest)] == [[0], [1001], [1002], [1003]]
    assert subject.batches == [(0, [0]), (1, [1, 2, 3])]
    await subject.close()


async def test_batchers_take_turns() -> None:
    """A long queue of one batcher delays another by one batch."""
    subject = Recorder(3, 2)
    subject.open.clear()
    long = asyncio.create_task(subject.batchers[0].score(numbered(range(8))))
    await subject.begun(1)
    others = [asyncio.create_task(subject.batchers[k].score(numbered(range(10 * k, 10 * k + 4)))) for k in (1, 2)]
    await asyncio.sleep(0.01)
    subject.open.set()
    await asyncio.gather(long, *others)
    assert [k for k, _ in subject.batches[:6]] == [0, 1, 2, 0, 1, 2]
    await subject.close()


async def test_a_deadline_passes_while_another_batch_runs() -> None:
    subject = Recorder(2, 4)
    subject.open.clear()
    first = asyncio.create_task(subject.batchers[0].score(numbered([0])))
    await subject.begun(1)
    assert values(await subject.batchers[1].score(numbered([1]), 0.02)) == ["deadline_exceeded"]
    subject.open.set()
    assert values(await first) == [0]
    assert values(await subject.batchers[1].score(numbered([2]))) == [1002]
    assert subject.batches == [(0, [0]), (1, [2])]  # the late item never ran
    await subject.close()


async def test_queue_limits_stay_separate() -> None:
    subject = Recorder(2, 4)
    subject.open.clear()
    full = asyncio.create_task(subject.batchers[0].score(numbered(range(100))))
    await subject.begun(1)
    with pytest.raises(Overloaded):
        await subject.batchers[0].score(numbered([200]))
    accepted = asyncio.create_task(subject.batchers[1].score(numbered([1])))
    subject.open.set()
    assert values(await accepted) == [1001]
    assert values(await full) == list(range(100))
    await subject.close()


async def test_closing_one_batcher_leaves_the_others_running() -> None:
    subject = Recorder(2, 4)
    subject.open.clear()
    closed = asyncio.create_task(subject.batchers[0].score(numbered([0])))
    await subject.begun(1)
    waiting = asyncio.create_task(subject.batchers[1].score(numbered([1])))
    await subject.batchers[0].close()
    subject.open.set()
    (outcome,) = await closed
    assert isinstance(outcome, ScoreFailure)
    assert values(await waiting) == [1001]
    await subject.close()


async def test_free_for_s_is_zero_while_another_owner_runs() -> None:
    thread, one, other = BatchThread(), object(), object()
    async with thread.turn(one):
        assert thread.free_for_s(other) == 0.0
        assert thread.free_for_s(one) >= 0.0
    await asyncio.sleep(0.01)
    assert thread.free_for_s(other) >= 0.01
    thread.close()
