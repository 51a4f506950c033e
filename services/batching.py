"""Collect the items of many requests in one queue, run them in batches, and return one outcome per item.

Whatever happens (the run raises or breaks its contract, a caller leaves, the batcher closes), every admitted item gets
exactly one outcome, in its caller's order. Knows no model, no Ray, no HTTP.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.batch_limit import BatchLimit
from services.isolation import Cost, Run, isolate
from synod.contracts import Outcome, ScoreFailure, ScoreItem
from synod.errors import DeadlineExceeded, Overloaded, ScorerFailed, Unavailable


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    item: ScoreItem
    images: int
    arrived_s: float
    outcome: asyncio.Future[Outcome]


class BatchThread:
    """A thread that runs the batches of one or more batchers, one at a time, in the order in which they ask.

    Batches of several scorers that ran at the same time would contend for the cores, the caches and the device.
    """

    def __init__(self) -> None:
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch")
        self._lock = asyncio.Lock()  # wakes its waiters in order
        self._owner: object | None = None
        self._changed_s = time.monotonic()

    @asynccontextmanager
    async def turn(self, owner: object) -> AsyncIterator[None]:
        """Wait until no other batch runs, and keep others out until the context ends."""
        async with self._lock:
            self._set(owner)
            try:
                yield
            finally:
                self._set(None)

    def free_for_s(self, owner: object) -> float:
        """Return for how long no batch of another owner has run; 0 while one runs."""
        return 0.0 if self._owner not in (None, owner) else time.monotonic() - self._changed_s

    def close(self) -> None:
        """Run no more batches. One in progress is not waited for."""
        self.executor.shutdown(wait=False, cancel_futures=True)

    def _set(self, owner: object | None) -> None:
        self._owner, self._changed_s = owner, time.monotonic()


class Batcher:
    """Collects the items of concurrent `score` calls and passes them to `run` in batches.

    A batch closes at `max_images` images or `wait_s` after its first item arrived, whichever comes first, and takes
    what has arrived when its turn comes in `thread`, which other batchers may share. A larger call is split; an item
    that costs more than `max_images` runs alone. `max_queued` bounds the images held, including the running batch; an
    idle batcher accepts any single call. `cost` counts the images of items that run together.

    A batch that runs out of memory is halved, and batches stay smaller for a while (`BatchLimit`); one that raises is
    bisected, so that an item fails only if it raises alone (`services.isolation`).
    """

    def __init__(
        self,
        run: Run,
        *,
        max_images: int,
        wait_s: float,
        max_queued: int,
        cost: Cost = len,
        thread: BatchThread | None = None,
    ) -> None:
        self._run = run
        self._limit = BatchLimit(max_images)
        self._wait_s = wait_s
        self._max_queued = max_queued
        self._cost = cost
        self._queue: deque[_Entry] = deque()
        self._running: list[_Entry] = []
        self._arrived = asyncio.Event()
        self._thread, self._owns_thread = thread or BatchThread(), thread is None
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def held(self) -> int:
        """Images that wait or run, each item counted by itself."""
        return sum(entry.images for entry in (*self._queue, *self._running))

    async def score(
        self, items: Sequence[ScoreItem], timeout_s: float = math.inf, *, first: bool = False
    ) -> list[Outcome]:
        """Return one outcome per item, in order; unfinished ones are DeadlineExceeded failures after `timeout_s`.

        No item starts later than that. The call then returns what is done; where nothing is done but some of it runs,
        it returns when that run ends, so that no run is wasted.

        Raises Overloaded when `items` do not fit (none is then admitted) and Unavailable after `close`. Cancelling a
        call removes its items from the queue; those that run are ignored. `first` queues before everything that
        waits, whether it fits or not.
        """
        late = ScoreFailure.of(DeadlineExceeded(f"not scored within {timeout_s:.3f} s; raise 'timeout_ms' or retry"))
        if not items or timeout_s <= 0:
            return [late] * len(items)
        entries = self._admit(items, first)
        outcomes = [entry.outcome for entry in entries]
        try:
            done, _ = await asyncio.wait(outcomes, timeout=None if math.isinf(timeout_s) else timeout_s)
        finally:
            self._withdraw(entries)
        if not done and (running := [entry.outcome for entry in self._running if entry in entries]):
            await asyncio.wait(running)
        return [outcome.result() if outcome.done() else late for outcome in outcomes]

    async def close(self) -> None:
        """Resolve everything that waits or runs as Unavailable and admit no more. A running batch is not waited for."""
        self._closed = True
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])
        closing = ScoreFailure.of(_closing())
        for entry in (*self._running, *self._queue):
            _resolve(entry, closing)
        self._running = []
        self._queue.clear()
        if self._owns_thread:
            self._thread.close()

    def _admit(self, items: Sequence[ScoreItem], first: bool) -> list[_Entry]:
        if self._closed:
            raise _closing()
        loop = asyncio.get_running_loop()
        entries = [_Entry(item, self._cost([item]), loop.time(), loop.create_future()) for item in items]
        held, new = self.held, sum(entry.images for entry in entries)
        if held and held + new > self._max_queued and not first:
            raise Overloaded(f"{held} images are held and {new} more exceed the limit {self._max_queued}; retry later")
        if first:
            self._queue.extendleft(reversed(entries))
        else:
            self._queue.extend(entries)
        self._arrived.set()
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        return entries

    def _withdraw(self, entries: list[_Entry]) -> None:
        """Remove those of `entries` that still wait from the queue."""
        gone = {entry for entry in entries if not entry.outcome.done()}
        if gone:
            self._queue = deque(entry for entry in self._queue if entry not in gone)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._fill()
            async with self._thread.turn(self):
                self._running = self._take()
                if self._running:
                    items = [entry.item for entry in self._running]
                    outcomes = await loop.run_in_executor(self._thread.executor, self._outcomes, items)
                    for entry, outcome in zip(self._running, outcomes, strict=True):
                        _resolve(entry, outcome)
                    self._running = []

    async def _fill(self) -> None:
        """Wait for a first item, then for a full batch or for the end of the first item's wait."""
        loop = asyncio.get_running_loop()
        while True:
            self._arrived.clear()
            if not self._queue:
                await self._arrived.wait()
                continue
            left_s = self._queue[0].arrived_s + self._wait_s - loop.time()
            if left_s <= 0 or self._images(self._queue) >= self._limit.images:
                return
            try:
                await asyncio.wait_for(self._arrived.wait(), left_s)
            except TimeoutError:
                return

    def _outcomes(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        """Return the outcomes of a batch; the error boundary of the thread."""
        try:
            return isolate(self._run, items, self._limit, self._cost)
        except BaseException as error:  # a library's SystemExit must not end the thread and leave callers waiting
            broken = ScorerFailed(f"the batch of {len(items)} items raised {type(error).__name__}: {error}")
            return [ScoreFailure.of(broken)] * len(items)

    def _take(self) -> list[_Entry]:
        """Return the next batch, in arrival order; empty when every waiting caller left meanwhile."""
        batch: list[_Entry] = []
        while self._queue and (not batch or self._images((*batch, self._queue[0])) <= self._limit.images):
            batch.append(self._queue.popleft())
        return batch

    def _images(self, entries: Sequence[_Entry] | deque[_Entry]) -> int:
        """Return what `entries` cost in one batch, or their sum, an upper bound, where it is within the limit."""
        upper = sum(entry.images for entry in entries)
        return upper if upper <= self._limit.images else self._cost([entry.item for entry in entries])


def _closing() -> Unavailable:
    return Unavailable("the replica is shutting down; retry")


def _resolve(entry: _Entry, outcome: Outcome) -> None:
    if not entry.outcome.done():
        entry.outcome.set_result(outcome)
