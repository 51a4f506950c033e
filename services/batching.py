"""Collect the items of many requests in one queue, run them in batches, and return one outcome per item.

Every admitted item gets exactly one outcome, in its caller's order, even if the run raises or breaks the batch
contract, a caller leaves or the batcher closes. This module is independent of models, Ray and HTTP.
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
    """A thread that runs the batches of one or more batchers, one at a time, first come, first served.

    Concurrent batches of several scorers would contend for the cores, the caches and the device.
    """

    def __init__(self) -> None:
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch")
        self._lock = asyncio.Lock()  # first in, first out
        self._owner: object | None = None
        self._changed_s = time.monotonic()

    @asynccontextmanager
    async def turn(self, owner: object) -> AsyncIterator[None]:
        """Wait until no batch runs, and hold the thread until the context ends."""
        async with self._lock:
            self._set(owner)
            try:
                yield
            finally:
                self._set(None)

    def free_for_s(self, owner: object) -> float:
        """Return the seconds since another owner's batch ended; 0 while one runs."""
        return 0.0 if self._owner not in (None, owner) else time.monotonic() - self._changed_s

    def close(self) -> None:
        """Run no more batches. Does not wait for a running one."""
        self.executor.shutdown(wait=False, cancel_futures=True)

    def _set(self, owner: object | None) -> None:
        self._owner, self._changed_s = owner, time.monotonic()


class Batcher:
    """Collects the items of concurrent `score` calls and passes them to `run` in batches.

    A batch is due when `max_images` images have arrived, or `wait_s` after its first item arrived, whichever comes
    first. It runs in `thread`, which other batchers may share, and contains what has arrived by then. A larger call is
    split; an item that costs more than `max_images` runs alone. `max_queued` limits the images held, including those
    of the running batch; an idle batcher accepts any single call. `cost` counts the images of a batch.

    A batch that runs out of memory is halved, and later batches stay smaller for a while (`BatchLimit`). A batch that
    raises is bisected, so that an item fails only if it raises alone (`services.isolation`).
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
        self.batches = 0  # how many have begun to run

    @property
    def held_images(self) -> int:
        """The images that wait or run. References that items share count for each item."""
        return sum(entry.images for entry in (*self._queue, *self._running))

    async def score(
        self, items: Sequence[ScoreItem], timeout_s: float = math.inf, *, first: bool = False
    ) -> list[Outcome]:
        """Return one outcome per item, in order; unfinished ones are DeadlineExceeded failures after `timeout_s`.

        No item starts to run after the timeout. The call then returns what is finished; if nothing is finished but
        some items are running, it waits for their batch, so that the work is not wasted.

        Raises Overloaded if `items` exceed the queue's limit (then none is admitted) and Unavailable after `close`.
        Cancelling a call removes its items from the queue and ignores the outcomes of running ones. `first` puts items
        at the front of the queue, even beyond its limit.
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
        """Resolve all items as Unavailable and admit no more. Does not wait for a running batch."""
        self._closed = True
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])
        closing = ScoreFailure.of(_shutting_down())
        for entry in (*self._running, *self._queue):
            _resolve(entry, closing)
        self._running = []
        self._queue.clear()
        if self._owns_thread:
            self._thread.close()

    def _admit(self, items: Sequence[ScoreItem], first: bool) -> list[_Entry]:
        if self._closed:
            raise _shutting_down()
        loop = asyncio.get_running_loop()
        entries = [_Entry(item, self._cost([item]), loop.time(), loop.create_future()) for item in items]
        held, new = self.held_images, sum(entry.images for entry in entries)
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
        unfinished = {entry for entry in entries if not entry.outcome.done()}
        if unfinished:
            self._queue = deque(entry for entry in self._queue if entry not in unfinished)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wait_for_batch()
            async with self._thread.turn(self):
                self._running = self._take()
                if self._running:
                    items = [entry.item for entry in self._running]
                    outcomes = await loop.run_in_executor(self._thread.executor, self._run_batch, items)
                    for entry, outcome in zip(self._running, outcomes, strict=True):
                        _resolve(entry, outcome)
                    self._running = []

    async def _wait_for_batch(self) -> None:
        """Wait for a first item, then until the batch is full or `wait_s` has passed."""
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

    def _run_batch(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        """Return the outcomes of a batch. The error boundary of the thread."""
        self.batches += 1
        try:
            return isolate(self._run, items, self._limit, self._cost)
        except BaseException as error:  # a library's SystemExit must not end the thread and leave callers waiting
            broken = ScorerFailed(f"the batch of {len(items)} items raised {type(error).__name__}: {error}")
            return [ScoreFailure.of(broken)] * len(items)

    def _take(self) -> list[_Entry]:
        """Take the next batch from the queue, in order; empty if every waiting caller has left."""
        batch: list[_Entry] = []
        while self._queue and (not batch or self._images((*batch, self._queue[0])) <= self._limit.images):
            batch.append(self._queue.popleft())
        return batch

    def _images(self, entries: Sequence[_Entry] | deque[_Entry]) -> int:
        """Return the cost of `entries` in one batch, or an upper bound of it that is within the limit."""
        upper = sum(entry.images for entry in entries)
        return upper if upper <= self._limit.images else self._cost([entry.item for entry in entries])


def _shutting_down() -> Unavailable:
    return Unavailable("the replica is shutting down; retry")


def _resolve(entry: _Entry, outcome: Outcome) -> None:
    if not entry.outcome.done():
        entry.outcome.set_result(outcome)
