"""Decide which calls wait, in which order they run, and when refused callers should retry. Counted in images.

Each scorer has a queue. It lets a window of images through to the replicas, which form the batches, and holds the rest
in order of arrival, where evaluation counts as if it had arrived AGING_S later. So training overtakes evaluation, but
only training that arrives within AGING_S of it: nobody starves, and the order of two waiting calls never changes. (A
weighted share guarantees neither.) Evaluation may fill only its QUEUE_SHARE, so that it cannot lock training out.

A refusal says when to retry: after the time in which the waiting images are served at the rate of the last
RATE_WINDOW_S, at most LONGEST_RETRY_S, with jitter; after a second if nothing was served lately.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Final, Literal

from synod.errors import Overloaded

Priority = Literal["training", "evaluation"]
AGING_S: Final[Mapping[Priority, float]] = {"training": 0.0, "evaluation": 10.0}
QUEUE_SHARE: Final[Mapping[Priority, float]] = {"training": 1.0, "evaluation": 0.5}
RATE_WINDOW_S: Final = 30.0
SHORTEST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0


class ScorerQueue:
    """The queue of one scorer. `window` images or `calls` calls may run at once, whichever allows more; `max_waiting`
    images may wait.

    A call is not split and goes to one replica. It starts as soon as any part of the window is free, so that a large
    call neither starves nor, by filling the window, leaves other replicas idle. An empty queue accepts any call.
    `changed` is called after each change with the time (monotonic) at which the next call arrived, None for no call.
    """

    def __init__(
        self, window: int, max_waiting: int, calls: int = 1, changed: Callable[[float | None], None] | None = None
    ) -> None:
        self.waiting = self.running = self._calls_running = 0
        self._window, self._calls, self._max_waiting = window, calls, max_waiting
        self._changed = changed
        self._served: deque[tuple[float, int]] = deque()  # (when, images) within RATE_WINDOW_S
        self._queue: list[tuple[float, int, Ticket]] = []
        self._order = count()

    def reserve(self, images: int, priority: Priority = "training", *, admitted: bool = False) -> Ticket:
        """Reserve a place. Raises Overloaded if the queue is full, except for work that was `admitted` before."""
        limit = int(self._max_waiting * QUEUE_SHARE[priority])
        if not admitted and self.waiting and self.waiting + images > limit:
            raise Overloaded(
                f"{self.waiting} images wait and {images} more exceed the limit {limit} of {priority}; retry later",
                retry_after_s=self._retry_after_s(),
            )
        self.waiting += images
        return Ticket(self, images, _now_s() + AGING_S[priority])

    def _retry_after_s(self) -> float:
        """Estimate how long the queue takes to drain, with jitter so that refused callers do not return together."""
        self._forget_old()
        served = sum(images for _, images in self._served)
        drain_s = self.waiting * max(1.0, _now_s() - self._served[0][0]) / served if served else SHORTEST_RETRY_S
        return min(LONGEST_RETRY_S, max(SHORTEST_RETRY_S, drain_s * random.uniform(0.8, 1.2)))

    def _forget_old(self) -> None:
        while self._served and self._served[0][0] < _now_s() - RATE_WINDOW_S:
            self._served.popleft()

    def _enqueue(self, ticket: Ticket) -> None:
        heapq.heappush(self._queue, (ticket.rank_s, next(self._order), ticket))
        self._start_calls()

    def _start_calls(self) -> None:
        self._drop_released()
        while self._queue and (self.running < self._window or self._calls_running < self._calls):
            _, _, ticket = heapq.heappop(self._queue)
            self.waiting -= ticket.images
            self.running += ticket.images
            self._calls_running += 1
            ticket.start()
            self._drop_released()
        if self._changed is not None:
            self._changed(self._queue[0][2].queued_s if self._queue else None)

    def _drop_released(self) -> None:
        while self._queue and self._queue[0][2].released:
            heapq.heappop(self._queue)

    def _release(self, ticket: Ticket) -> None:
        if ticket.running:
            self.running -= ticket.images
            self._calls_running -= 1
            self._served.append((_now_s(), ticket.images))
            self._forget_old()
        else:
            self.waiting -= ticket.images
        self._start_calls()


class Ticket:
    """A place in a queue, to be released in the end. `rank_s` (monotonic) orders the tickets."""

    def __init__(self, queue: ScorerQueue, images: int, rank_s: float) -> None:
        self.images, self.rank_s, self.queued_s = images, rank_s, 0.0
        self.running = self.released = False
        self._queue = queue
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def turn(self) -> None:
        """Wait for this ticket's turn, however long. Call it once; `release` must follow."""
        self.queued_s = _now_s()
        self._queue._enqueue(self)
        await self._started

    def start(self) -> None:
        """Let the call run; the queue calls this."""
        self.running = True
        if not self._started.done():
            self._started.set_result(None)

    def release(self) -> None:
        """Give the place back. A second call has no effect."""
        if not self.released:
            self.released = True
            self._queue._release(self)


@dataclass(frozen=True, slots=True)
class Window:
    """How much of one scorer may run from one gateway: images, or calls if they allow more."""

    images: int = 128
    calls: int = 2


class Admission:
    """All queues of a gateway.

    `windows` are by scorer; other scorers get the default. `changed` is called with the scorer and what `ScorerQueue`
    passes to its own `changed`.
    """

    def __init__(
        self,
        windows: Mapping[str, Window],
        max_waiting: int,
        changed: Callable[[str, float | None], None] = lambda scorer, arrived_s: None,
    ) -> None:
        self._windows, self._max_waiting, self._changed = windows, max_waiting, changed
        self._queues: dict[str, ScorerQueue] = {}

    def queue(self, scorer: str) -> ScorerQueue:
        """Return the queue of a scorer."""
        if scorer not in self._queues:
            window, changed = self._windows.get(scorer, Window()), partial(self._changed, scorer)
            self._queues[scorer] = ScorerQueue(window.images, self._max_waiting, window.calls, changed)
        return self._queues[scorer]

    def reserve(self, images: Mapping[str, int], priority: Priority) -> dict[str, Ticket]:
        """Reserve a place in the queue of each scorer, or in none. Raises Overloaded, which names the scorer."""
        tickets: dict[str, Ticket] = {}
        try:
            for scorer, cost in images.items():
                tickets[scorer] = self.queue(scorer).reserve(cost, priority)
        except Overloaded as full:
            for ticket in tickets.values():
                ticket.release()
            raise Overloaded(f"scorer '{scorer}': {full}", retry_after_s=full.retry_after_s) from None
        return tickets


_now_s = time.monotonic
