"""Who may wait, who goes first, and when to come back: one lane a scorer, counted in images. No I/O but the loop.

A lane lets a window of images through to the replicas, where batches form, and holds the others in order. Priority is
strict with ageing: work goes in the order of arrival, as if evaluation had arrived PATIENCE_S later. So training
overtakes evaluation, yet only training that arrives within PATIENCE_S of it: nobody starves, and the order of two
waiting calls never changes, which a weighted share cannot say. Evaluation may also fill no more than its SHARE of the
queue, so that it cannot lock training out.

A refusal says when to retry: after the time in which the waiting images are served at the rate of the last
RATE_WINDOW_S, at most LONGEST_RETRY_S, with jitter; after a second if nothing was served lately.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Final, Literal

from synod.errors import Overloaded, PayloadTooLarge

Priority = Literal["training", "evaluation"]
PATIENCE_S: Final[Mapping[Priority, float]] = {"training": 0.0, "evaluation": 10.0}
SHARE: Final[Mapping[Priority, float]] = {"training": 1.0, "evaluation": 0.5}
RATE_WINDOW_S: Final = 30.0
SHORTEST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a token's name, its priority, and how many images it may have under way (None: as many as it likes)."""

    name: str = "anyone"
    priority: Priority = "training"
    max_images: int | None = None


class Lane:
    """The way to one scorer: `window` images or `calls` calls are under way at once, whichever are more, and
    `max_waiting` images wait.

    A call goes whole, to one replica, as soon as any of the window is free: large ones neither starve nor, by filling
    the window, leave other replicas idle. An empty queue takes any one call. `changed` is told, after each change,
    when (monotonic) the call came that is next, None when none waits.
    """

    def __init__(
        self, window: int, max_waiting: int, calls: int = 1, changed: Callable[[float | None], None] | None = None
    ) -> None:
        self.waiting = 0
        self.running = 0
        self._calls_running = 0
        self._window = window
        self._calls = calls
        self._max_waiting = max_waiting
        self._changed = changed
        self._served: deque[tuple[float, int]] = deque()  # (when, images) within RATE_WINDOW_S
        self._queue: list[tuple[float, int, Ticket]] = []
        self._order = count()

    def reserve(self, images: int, priority: Priority = "training", *, admitted: bool = False) -> Ticket:
        """A place in the queue. Raises Overloaded when it is full, but never for what was `admitted` already."""
        limit = int(self._max_waiting * SHARE[priority])
        if not admitted and self.waiting and self.waiting + images > limit:
            raise Overloaded(
                f"{self.waiting} images wait and {images} more pass the limit {limit} of {priority}; retry later",
                retry_after_s=self._retry_after_s(),
            )
        self.waiting += images
        return Ticket(self, images, _now_s() + PATIENCE_S[priority])

    def _retry_after_s(self) -> float:
        """Estimate how long the queue takes to drain, with jitter so that refused callers do not return together."""
        self._forget_old()
        served = sum(images for _, images in self._served)
        drain_s = self.waiting * max(1.0, _now_s() - self._served[0][0]) / served if served else SHORTEST_RETRY_S
        jitter = random.uniform(0.8, 1.2)
        return min(LONGEST_RETRY_S, max(SHORTEST_RETRY_S, drain_s * jitter))

    def _forget_old(self) -> None:
        while self._served and self._served[0][0] < _now_s() - RATE_WINDOW_S:
            self._served.popleft()

    def _enqueue(self, ticket: Ticket) -> None:
        heapq.heappush(self._queue, (ticket.rank_s, next(self._order), ticket))
        self._advance()

    def _advance(self) -> None:
        self._drop_settled()
        while self._queue and (self.running < self._window or self._calls_running < self._calls):
            _, _, ticket = heapq.heappop(self._queue)
            self.waiting -= ticket.images
            self.running += ticket.images
            self._calls_running += 1
            ticket.go()
            self._drop_settled()
        if self._changed is not None:
            self._changed(self._queue[0][2].queued_s if self._queue else None)

    def _drop_settled(self) -> None:
        while self._queue and self._queue[0][2].settled:
            heapq.heappop(self._queue)

    def _leave(self, ticket: Ticket) -> None:
        if ticket.running:
            self.running -= ticket.images
            self._calls_running -= 1
            self._served.append((_now_s(), ticket.images))
            self._forget_old()
        else:
            self.waiting -= ticket.images
        self._advance()


class Ticket:
    """A place in a lane, until `release`; `turn` waits for the way to be free, however long."""

    def __init__(self, lane: Lane, images: int, rank_s: float) -> None:
        self.images = images
        self.rank_s = rank_s
        self.queued_s = 0.0
        self.running = False
        self.settled = False
        self._lane = lane
        self._turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def turn(self) -> None:
        """Wait for this ticket's turn, however long. Call it once; `release` must follow."""
        self.queued_s = _now_s()
        self._lane._enqueue(self)
        await self._turn

    def go(self) -> None:
        """The lane's word that the turn has come."""
        self.running = True
        if not self._turn.done():
            self._turn.set_result(None)

    def release(self) -> None:
        """Give the place up. Twice is fine."""
        if not self.settled:
            self.settled = True
            self._lane._leave(self)


@dataclass(frozen=True, slots=True)
class Window:
    """What of one scorer may be under way from one gateway: images, or calls where those are more."""

    images: int = 128
    calls: int = 2


class Admission:
    """All lanes of a gateway, and what each caller has under way in it. `windows`: by scorer, others have the usual.

    `changed` is told the scorer and what its lane tells.
    """

    def __init__(
        self,
        windows: Mapping[str, Window],
        max_waiting: int,
        changed: Callable[[str, float | None], None] = lambda scorer, came_s: None,
    ) -> None:
        self._windows = windows
        self._changed = changed
        self._max_waiting = max_waiting
        self._lanes: dict[str, Lane] = {}
        self._under_way: Counter[str] = Counter()

    def lane(self, scorer: str) -> Lane:
        """The lane of a scorer."""
        if scorer not in self._lanes:
            window = self._windows.get(scorer, Window())
            self._lanes[scorer] = Lane(window.images, self._max_waiting, window.calls, partial(self._changed, scorer))
        return self._lanes[scorer]

    def reserve(self, images: Mapping[str, int], priority: Priority) -> dict[str, Ticket]:
        """A place in each scorer's lane, or in none. Raises Overloaded, naming the scorer."""
        tickets: dict[str, Ticket] = {}
        try:
            for scorer, cost in images.items():
                tickets[scorer] = self.lane(scorer).reserve(cost, priority)
        except Overloaded as full:
            for ticket in tickets.values():
                ticket.release()
            raise Overloaded(f"scorer '{scorer}': {full}", retry_after_s=full.retry_after_s) from None
        return tickets

    @contextmanager
    def quota(self, caller: Caller, images: int) -> Iterator[None]:
        """Count `images` as the caller's while it lasts. Raises Overloaded, or PayloadTooLarge if they never fit."""
        most = caller.max_images
        if most is not None and images > most:
            raise PayloadTooLarge(f"{images} items, the quota of '{caller.name}' is {most}; send several requests")
        if most is not None and self._under_way[caller.name] + images > most:
            raise Overloaded(
                f"'{caller.name}' has {self._under_way[caller.name]} images under way and {images} more pass its quota "
                f"{most}; retry later"
            )
        self._under_way[caller.name] += images
        try:
            yield
        finally:
            self._under_way[caller.name] -= images


_now_s = time.monotonic
