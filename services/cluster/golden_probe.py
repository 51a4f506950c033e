"""Whether a replica still answers as recorded: its golden items go through its own batches from time to time.

A probe begins when the replica is idle, or under steady load a period later, and goes to the front of the queue: the
next batch that forms holds it. So busy is told from dead without asking the device: a long batch leaves the probe
waiting, a queue that passes it by or does nothing is broken.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from services.golden import GoldenItem, compare_outcomes
from services.settings import MAX_TIMEOUT_MS
from synod.contracts import Outcome, ScoreItem
from synod.errors import SynodError

log = logging.getLogger("ray.serve")
PASSED_BY: Final = 2  # batches without the probe; the first of them may have formed before it came


@dataclass(frozen=True, slots=True)
class ProbeTimeouts:
    """Seconds between probes, for a probe that could be answered, and for any batch: longer than its callers wait."""

    period_s: float = 60.0
    probe_s: float = 30.0
    batch_s: float = MAX_TIMEOUT_MS / 1000


DEFAULT_TIMEOUTS: Final = ProbeTimeouts()


class GoldenProbe:
    """The golden verdict of one replica: at first `drift`, as found at start. `score` sends items to the front of its
    queue.

    `check` belongs to the event loop, `running` to the thread of the batches.
    """

    def __init__(
        self,
        name: str,
        golden: Sequence[GoldenItem],
        tolerance: float,
        score: Callable[[Sequence[ScoreItem]], Awaitable[list[Outcome]]],
        timeouts: ProbeTimeouts,
        drift: str | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._golden, self._tolerance = name, golden, tolerance
        self._score, self._timeouts, self._now_s = score, timeouts, now_s
        self._own = {id(one.item) for one in golden}
        self._drift = drift
        self._due_s = now_s() + timeouts.period_s
        self._probe: asyncio.Task[None] | None = None
        self._asked_s = 0.0
        self._reached = False  # by the probe: the device
        self._passed = 0  # batches that began after the probe and went by it
        self._runs: str | None = None  # "probe" when it runs alone, "batch" for all else, None when nothing runs
        self._changed_s = now_s()  # when `_runs` did

    def check(self, *, idle: bool) -> None:
        """Begin a probe when one is due, and tell what is known: raises RuntimeError for a replica to be replaced."""
        now_s = self._now_s()
        if self._golden and self._probe is None and now_s >= self._due_s + (0 if idle else self._timeouts.period_s):
            self._asked_s, self._reached, self._passed = now_s, False, 0
            self._probe = asyncio.create_task(self._ask())
        if (reason := self._reason(now_s)) is not None:
            raise RuntimeError(f"scorer '{self._name}' {reason}")

    def users(self, items: Sequence[ScoreItem]) -> list[ScoreItem]:
        """Those of `items` that are not the probe's."""
        return [item for item in items if id(item) not in self._own]

    @contextmanager
    def running(self, items: Sequence[ScoreItem]) -> Iterator[None]:
        """The time in which `items` are on the device."""
        users = self.users(items)
        waits = self._probe is not None and not self._reached
        self._reached = self._reached or len(users) < len(items)
        self._set("batch" if users else "probe")
        try:
            yield
        finally:
            self._set(None)
            self._passed += waits and not self._reached

    def _set(self, runs: str | None) -> None:
        self._runs, self._changed_s = runs, self._now_s()

    def _reason(self, now_s: float) -> str | None:
        since_s = now_s - self._changed_s
        if self._drift is not None:
            return f"is not the recorded one: {self._drift}"
        if self._runs is not None and since_s > self._timeouts.batch_s:
            return f"has run one batch for {since_s:.0f} s; nobody waits for it any more"
        if self._probe is None:
            return None
        waited_s = now_s - self._asked_s
        if waited_s > self._timeouts.probe_s and not self._reached and self._passed >= PASSED_BY:
            return f"has not reached its golden items for {waited_s:.0f} s, though {self._passed} batches ended"
        if self._runs != "batch" and min(waited_s, since_s) > self._timeouts.probe_s:
            return f"has not answered its golden items for {waited_s:.0f} s, though it had nothing else to do"
        return None

    async def _ask(self) -> None:
        try:
            outcomes = await self._score([one.item for one in self._golden])
            self._drift = compare_outcomes(self._name, self._golden, outcomes, self._tolerance)
        except SynodError as error:  # it is closing
            log.info("%s: golden items were not scored: %s", self._name, error)
        finally:
            self._probe = None
            self._due_s = self._now_s() + self._timeouts.period_s
