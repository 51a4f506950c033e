"""The batcher under faults: every admitted item gets exactly one outcome, in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.batching import Batcher
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import Overloaded, Unavailable
from tests.outcomes import values


def numbered(*numbers: int) -> list[ScoreItem]:
    return [ScoreItem(prompt=str(n)) for n in numbers]


def number(item: ScoreItem) -> int:
    assert item.prompt is not None
    return int(item.prompt)


def echo(items: Sequence[ScoreItem]) -> list[Outcome]:
    return [Score(float(number(item))) for item in items]


class Gate:
    """A batch function that records its batches and blocks until `open` is set."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[int]] = []

    def __call__(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        self.batches.append([number(item) for item in items])
        self.entered.release()
        assert self.open.wait(10)
        return echo(items)

    async def running(self) -> None:
        await asyncio.to_thread(self.entered.acquire)


def batcher(run: Callable[[Sequence[ScoreItem]], list[Outcome]], **changes: float) -> Batcher:
    return Batcher(run, **{"max_images": 4, "wait_s": 0.0, "max_queued": 1000} | changes)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    max_images=st.integers(1, 8),
    wait_ms=st.sampled_from([0.0, 1.0]),
    poison=st.sets(st.integers(0, 40)),
)
def test_every_caller_gets_its_own_outcomes_in_order(
    sizes: list[int], max_images: int, wait_ms: float, poison: set[int]
) -> None:
    """Batches hold at most `max_images`; a poisoned item fails alone, and every other item is scored once."""
    batches: list[list[int]] = []

    def run(items: Sequence[ScoreItem]) -> list[Outcome]:
        batches.append([number(item) for item in items])
        if poison & set(batches[-1]):
            raise ValueError("poison")
        return echo(items)

    async def scenario() -> list[list[Outcome]]:
        subject = batcher(run, max_images=max_images, wait_s=wait_ms / 1000)
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        calls = [
            subject.score(numbered(*range(start, start + size))) for start, size in zip(starts, sizes, strict=True)
        ]
        answers = await asyncio.gather(*calls)
        assert subject.held_images == 0
        await subject.close()
        return answers

    answers = [value for one in asyncio.run(scenario()) for value in values(one)]
    assert all(len(batch) <= max_images for batch in batches)
    assert sorted(n for batch in batches if not poison & set(batch) for n in batch) == [
        n for n in range(sum(sizes)) if n not in poison
    ]
    assert answers == ["scorer_failed" if n in poison else float(n) for n in range(sum(sizes))]


async def test_calls_made_while_a_batch_runs_share_the_next_batch() -> None:
    gate = Gate()
    subject = batcher(gate, max_images=3)
    first = asyncio.create_task(subject.score(numbered(0)))
    await gate.running()
    rest = [asyncio.create_task(subject.score(numbered(n))) for n in (1, 2, 3, 4)]
    await asyncio.sleep(0)  # the run blocks its thread, not the event loop
    gate.open.set()
    assert [values(o) for o in await asyncio.gather(first, *rest)] == [[0], [1], [2], [3], [4]]
    assert gate.batches == [[0], [1, 2, 3], [4]]
    await subject.close()


async def test_a_short_batch_waits_and_a_full_batch_runs_at_once() -> None:
    gate = Gate()
    gate.open.set()
    subject = batcher(gate, max_images=2, wait_s=3600.0)
    alone = asyncio.create_task(subject.score(numbered(0)))
    await asyncio.sleep(0.01)
    assert gate.batches == []
    assert values(await subject.score(numbered(1))) == [1]
    assert values(await alone) == [0]
    assert gate.batches == [[0, 1]]
    await subject.close()


async def test_a_short_batch_runs_after_the_wait() -> None:
    subject = batcher(echo, max_images=100, wait_s=0.01)
    assert values(await subject.score(numbered(7))) == [7]
    await subject.close()


async def test_batch_size_counts_images_not_items() -> None:
    gate = Gate()
    gate.open.set()
    subject = Batcher(gate, max_images=4, wait_s=0.0, max_queued=100, cost=lambda items: sum(map(number, items)))
    assert values(await subject.score(numbered(3, 1, 2, 9, 1))) == [3, 1, 2, 9, 1]
    assert gate.batches == [[3, 1], [2], [9], [1]]
    await subject.close()


@pytest.mark.parametrize(
    ("run", "word"),
    [
        (lambda items: 1 / 0, "ZeroDivisionError"),
        (lambda items: echo(items)[1:], "returned 1 outcomes for 2"),
        (lambda items: [*echo(items), Score(0.0)], "returned 3 outcomes for 2"),
        (lambda items: None, "TypeError"),
        (lambda items: [0.5 for _ in items], "float"),
        (lambda items: exec("raise SystemExit(3)"), "SystemExit"),
    ],
)
async def test_a_contract_violation_fails_only_its_own_batch(
    run: Callable[[Sequence[ScoreItem]], list[Outcome]], word: str
) -> None:
    broken = True
    subject = batcher(lambda items: run(items) if broken else echo(items))
    outcomes = await subject.score(numbered(1, 2))
    assert [o.code for o in outcomes if isinstance(o, ScoreFailure) and word in o.message] == ["scorer_failed"] * 2
    broken = False
    assert values(await subject.score(numbered(3))) == [3]
    await subject.close()


async def test_batches_stay_smaller_after_out_of_memory() -> None:
    sizes: list[int] = []

    def run(items: Sequence[ScoreItem]) -> list[Outcome]:
        sizes.append(len(items))
        if len(items) > 2:
            raise MemoryError
        return echo(items)

    subject = batcher(run, max_images=4)
    assert values(await subject.score(numbered(*range(6)))) == list(range(6))
    assert sizes == [4, 2, 2, 2]  # the second batch starts at the reduced size
    await subject.close()


async def test_an_overloading_call_is_refused_whole_with_the_numbers() -> None:
    gate = Gate()
    subject = batcher(gate, max_images=2, max_queued=5)
    held = asyncio.create_task(subject.score(numbered(0, 1, 2, 3)))
    await gate.running()
    assert subject.held_images == 4
    with pytest.raises(Overloaded, match="4 images are held and 2 more exceed the limit 5"):
        await subject.score(numbered(8, 9))
    last = asyncio.create_task(subject.score(numbered(4)))
    gate.open.set()
    assert values(await held) == [0, 1, 2, 3]
    assert values(await last) == [4]
    assert values(await subject.score(numbered(*range(9)))) == list(range(9))  # an idle batcher accepts any one call
    assert all(n < 9 for batch in gate.batches for n in batch)
    await subject.close()


async def test_a_cancelled_call_is_removed_from_the_queue() -> None:
    gate = Gate()
    subject = batcher(gate)
    first = asyncio.create_task(subject.score(numbered(0)))
    await gate.running()
    cancelled = asyncio.create_task(subject.score(numbered(1, 2)))
    kept = asyncio.create_task(subject.score(numbered(3)))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert subject.held_images == 2
    gate.open.set()
    assert values(await first) + values(await kept) == [0, 3]
    assert gate.batches == [[0], [3]]
    await subject.close()


async def test_cancelling_during_a_batch_does_not_affect_other_callers() -> None:
    gate = Gate()
    subject = batcher(gate, wait_s=0.01)
    cancelled = asyncio.create_task(subject.score(numbered(0)))
    kept = asyncio.create_task(subject.score(numbered(1)))
    await gate.running()
    cancelled.cancel()
    await asyncio.wait([cancelled])
    gate.open.set()
    assert values(await kept) == [1]
    assert gate.batches == [[0, 1]]
    await subject.close()


async def test_items_queued_at_the_deadline_never_run() -> None:
    gate = Gate()
    subject = batcher(gate, max_images=1)
    running = asyncio.create_task(subject.score(numbered(0)))
    await gate.running()
    assert values(await subject.score(numbered(1, 2), timeout_s=0.05)) == ["deadline_exceeded"] * 2
    gate.open.set()
    assert values(await running) == [0]
    assert values(await subject.score(numbered(3))) == [3]
    assert values(await subject.score(numbered(4), timeout_s=0.0)) == ["deadline_exceeded"]
    assert gate.batches == [[0], [3]]
    await subject.close()


async def test_a_call_without_results_waits_for_its_running_batch() -> None:
    gate = Gate()
    subject = batcher(gate, max_images=2)
    call = asyncio.create_task(subject.score(numbered(0, 1, 2), timeout_s=0.05))
    await gate.running()
    while subject.held_images == 3:
        await asyncio.sleep(0.001)
    assert not call.done()
    assert subject.held_images == 2  # the queued item is dropped at once
    gate.open.set()
    assert values(await call) == [0, 1, "deadline_exceeded"]
    assert values(await subject.score(numbered(3))) == [3]
    assert gate.batches == [[0, 1], [3]]
    await subject.close()


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_a_call_past_its_deadline_ends_on_cancel_and_close(how: str) -> None:
    gate = Gate()
    subject = batcher(gate, max_images=1)
    call = asyncio.create_task(subject.score(numbered(0, 1), timeout_s=0.01))
    await gate.running()
    while subject.held_images == 2:
        await asyncio.sleep(0.001)
    if how == "close":
        await subject.close()
        assert values(await call) == ["unavailable", "deadline_exceeded"]
    else:
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
    gate.open.set()
    if how == "cancel":
        assert values(await subject.score(numbered(2))) == [2]
        assert gate.batches == [[0], [2]]
        await subject.close()


async def test_partial_results_are_returned_at_the_deadline() -> None:
    stuck = threading.Event()

    def run(items: Sequence[ScoreItem]) -> list[Outcome]:
        if number(items[0]) == 1:
            assert stuck.wait(10)
        return echo(items)

    subject = batcher(run, max_images=1)
    late = "deadline_exceeded"
    assert values(await subject.score(numbered(0, 1, 2), timeout_s=0.2)) == [0, late, late]
    stuck.set()
    await subject.close()


async def test_close_resolves_queued_and_running_items() -> None:
    gate = Gate()
    subject = batcher(gate, max_images=1)
    call = asyncio.create_task(subject.score(numbered(0, 1, 2)))
    await gate.running()
    await subject.close()
    assert values(await call) == ["unavailable"] * 3
    with pytest.raises(Unavailable):
        await subject.score(numbered(3))
    gate.open.set()


async def test_close_may_be_called_early_and_twice() -> None:
    subject = batcher(echo)
    await subject.close()
    await subject.close()


async def test_an_empty_call_returns_no_outcomes() -> None:
    subject = batcher(echo)
    assert await subject.score([]) == []
    await subject.close()
