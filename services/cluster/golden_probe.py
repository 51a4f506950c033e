"""GoldenProbe: check periodically that a scorer still scores its golden items as recorded.

The items are scored in the scorer's normal batches. A probe starts when the scorer is idle, or one period later under
steady load. It goes to the front of the queue, so that the next batch contains it. This distinguishes a busy scorer
from a stuck one without using the device: a busy scorer delays the probe by one long batch. A stuck one runs other
batches before it, or runs nothing although the device is free.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from services.golden import GoldenItem, compare_outcomes, is_temporary
from services.settings import MAX_TIMEOUT_MS
from synod.contracts import Outcome, ScoreItem
from synod.errors import SynodError

log = logging.getLogger("ray.serve")
MAX_PASSED_OVER: Final = 2  # batches without the probe; the first may have formed before the probe started


@dataclass(frozen=True, slots=True)
class ProbeTimeouts:
    """Limits: between probes, for a probe while the device is free, for any batch (longer than callers wait)."""

    period_s: float = 60.0
    probe_s: float = 30.0
    batch_s: float = MAX_TIMEOUT_MS / 1000


DEFAULT_TIMEOUTS: Final = ProbeTimeouts()


class GoldenProbe:
    """The health of one scorer by its golden items. `drift` describes a difference found at start, if there was one.

    `score` puts items at the front of the scorer's queue. `free_for_s` returns for how long no other scorer's batch has
    used the device. The event loop uses `check`; the thread that runs batches uses `running`.
    """

    def __init__(
        self,
        name: str,
        golden: Sequence[GoldenItem],
        tolerance: float,
        score: Callable[[Sequence[ScoreItem]], Awaitable[list[Outcome]]],
        timeouts: ProbeTimeouts,
        drift: str | None = None,
        free_for_s: Callable[[], float] = lambda: math.inf,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._golden, self._tolerance = name, golden, tolerance
        self._score, self._timeouts, self._free_for_s, self._now_s = score, timeouts, free_for_s, now_s
        self._own_items = {id(one.item) for one in golden}
        self._drift = drift
        self._due_s = now_s() + timeouts.period_s
        self._probe: asyncio.Task[None] | None = None
        self._started_s = 0.0
        self._reached = False  # whether the probe has reached the device
        self._passed_over = 0  # batches that started after the probe and did not contain it
        self._counted = 0  # the number of the last of them
        self._runs: str | None = None  # "probe" when it runs alone, "batch" for any other, None when nothing runs
        self._changed_s = now_s()  # when `_runs` changed

    def check(self, *, idle: bool) -> None:
        """Start a probe when one is due. Raises RuntimeError if Serve must replace the process."""
        now_s = self._now_s()
        if self._golden and self._probe is None and now_s >= self._due_s + (0 if idle else self._timeouts.period_s):
            self._started_s, self._reached, self._passed_over = now_s, False, 0
            self._probe = asyncio.create_task(self._run_probe())
        if (reason := self._reason(now_s)) is not None:
            raise RuntimeError(f"scorer '{self._name}' {reason}")

    def users(self, items: Sequence[ScoreItem]) -> list[ScoreItem]:
        """Return those of `items` that are not the probe's."""
        return [item for item in items if id(item) not in self._own_items]

    @contextmanager
    def running(self, items: Sequence[ScoreItem], batch: int) -> Iterator[None]:
        """Record that `items` run while the context is open: a batch, or a part of it while a bad item is looked for.

        `batch` is the number of that batch (`Batcher.batches`).
        """
        users = self.users(items)
        waits = self._probe is not None and not self._reached
        self._reached = self._reached or len(users) < len(items)
        self._set("batch" if users else "probe")
        try:
            yield
        finally:
            self._set(None)
            if waits and not self._reached and batch != self._counted:
                self._passed_over, self._counted = self._passed_over + 1, batch

    def _set(self, runs: str | None) -> None:
        self._runs, self._changed_s = runs, self._now_s()

    def _reason(self, now_s: float) -> str | None:
        since_s = now_s - self._changed_s
        if self._drift is not None:
            return f"does not score as recorded: {self._drift}"
        if self._runs is not None and since_s > self._timeouts.batch_s:
            return f"has run one batch for {since_s:.0f} s; no caller waits that long"
        if self._probe is None:
            return None
        waited_s = now_s - self._started_s
        if waited_s > self._timeouts.probe_s and not self._reached and self._passed_over >= MAX_PASSED_OVER:
            return f"has not reached its golden items for {waited_s:.0f} s, though {self._passed_over} batches ended"
        if self._runs != "batch" and min(waited_s, since_s, self._free_for_s()) > self._timeouts.probe_s:
            return f"has not answered its golden items for {waited_s:.0f} s, though it had nothing else to do"
        return None

    async def _run_probe(self) -> None:
        """Score the golden items and compare. After temporary failures the last result stays until the next probe."""
        try:
            outcomes = await self._score([one.item for one in self._golden])
            drift = compare_outcomes(self._name, self._golden, outcomes, self._tolerance, ignore_temporary=True)
            if drift is not None or not any(map(is_temporary, outcomes)):
                self._drift = drift
        except SynodError as error:  # the batcher is closing
            log.info("%s: golden items were not scored: %s", self._name, error)
        finally:
            self._probe = None
            self._due_s = self._now_s() + self._timeouts.period_s
