"""Items of many requests -> one queue -> one batch -> one outcome an item.

The law: whatever happens (the run raises or breaks its contract, a caller leaves, the batcher closes), every admitted
item gets exactly one outcome, in its caller's order. Knows no model, no ray, no HTTP.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from services.isolation import BatchLimit, Run, isolate, one_image
from synod.contracts import Outcome, ScoreFailure, ScoreItem
from synod.errors import DeadlineExceeded, Overloaded, ScorerFailed, Unavailable


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    item: ScoreItem
    images: int
    arrived_s: float
    outcome: asyncio.Future[Outcome]


class Batcher:
    """Collects items of concurrent `score` calls and gives them to `run`, which works in one thread of its own.

    A batch closes at `max_images` images or `wait_s` after its first item arrived, whichever comes first. A larger call
    is split; a single item that costs more than `max_images` runs alone. `max_queued` bounds the images held, those in
    the running batch included; an idle batcher takes any one call. `cost` is what an item counts for, in images.

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
        cost: Callable[[ScoreItem], int] = one_image,
    ) -> None:
        self._run = run
        self._limit = BatchLimit(max_images)
        self._wait_s = wait_s
        self._max_queued = max_queued
        self._cost = cost
        self._queue: deque[_Entry] = deque()
        self._running: list[_Entry] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch")
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def held(self) -> int:
        """Images waiting or in the running batch."""
        return sum(entry.images for entry in (*self._queue, *self._running))

    async def score(
        self, items: Sequence[ScoreItem], timeout_s: float = math.inf, *, first: bool = False
    ) -> list[Outcome]:
        """One outcome an item, in order; what is not done `timeout_s` from now is a DeadlineExceeded failure.

        None of `items` begins after that. The call answers then with what is done; where nothing is, but some of it
        runs, it answers when that has ended, so that no run was for nothing.

        Raises Overloaded when `items` do not fit (none is then admitted) and Unavailable after `close`. A cancelled
        call takes its items out of the queue; those that run already are only ignored. `first` goes ahead of all that
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
        """Resolve what waits or runs as Unavailable and admit no more. A run in progress is not waited for."""
        self._closed = True
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])
        closing = ScoreFailure.of(_closing())
        for entry in (*self._running, *self._queue):
            _resolve(entry, closing)
        self._running = []
        self._queue.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _admit(self, items: Sequence[ScoreItem], first: bool) -> list[_Entry]:
        if self._closed:
            raise _closing()
        loop = asyncio.get_running_loop()
        entries = [_Entry(item, self._cost(item), loop.time(), loop.create_future()) for item in items]
        held, asked = self.held, sum(entry.images for entry in entries)
        if held and held + asked > self._max_queued and not first:
            raise Overloaded(f"{held} images are held and {asked} more pass the limit {self._max_queued}; retry later")
        if first:
            self._queue.extendleft(reversed(entries))
        else:
            self._queue.extend(entries)
        self._arrived.set()
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        return entries

    def _withdraw(self, entries: list[_Entry]) -> None:
        """Take what still waits of `entries` out of the queue."""
        gone = {entry for entry in entries if not entry.outcome.done()}
        if gone:
            self._queue = deque(entry for entry in self._queue if entry not in gone)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._fill()
            self._running = self._take()
            if self._running:
                items = [entry.item for entry in self._running]
                outcomes = await loop.run_in_executor(self._thread, self._outcomes, items)
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
            if sum(entry.images for entry in self._queue) >= self._limit.images:
                return
            try:
                await asyncio.wait_for(self._arrived.wait(), left_s)
            except TimeoutError:
                return

    def _outcomes(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        """What a batch comes to: this is the rim of the worker thread."""
        try:
            return isolate(self._run, items, self._limit, self._cost)
        except BaseException as error:  # a library's SystemExit must not end the thread and leave callers waiting
            broken = ScorerFailed(f"the batch of {len(items)} items raised {type(error).__name__}: {error}")
            return [ScoreFailure.of(broken)] * len(items)

    def _take(self) -> list[_Entry]:
        """The next batch, in arrival order; empty when every waiting caller left meanwhile."""
        batch: list[_Entry] = []
        room = self._limit.images
        while self._queue and (not batch or self._queue[0].images <= room):
            batch.append(self._queue.popleft())
            room -= batch[-1].images
        return batch


def _closing() -> Unavailable:
    return Unavailable("the replica is shutting down; retry")


def _resolve(entry: _Entry, outcome: Outcome) -> None:
    if not entry.outcome.done():
        entry.outcome.set_result(outcome)
