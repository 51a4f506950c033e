"""SharedCall: let many coroutines await one blocking call, in a thread that nothing else uses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedCall(Generic[T]):
    """Calls `function` in a thread of its own, at most one call at a time, whatever the number of callers.

    A caller joins the call in progress, or receives a result that is at most `max_age_s` old. A function that blocks
    therefore takes one thread, and none of the event loop's default pool, in which requests are decoded.
    """

    def __init__(self, function: Callable[[], T], max_age_s: float = 0.0) -> None:
        self._function, self._max_age_s = function, max_age_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shared_call")
        self._call: asyncio.Future[tuple[T, float]] | None = None  # the result, and when it was known (monotonic)

    async def result(self, timeout_s: float | None = None) -> T:
        """Return a result. Raises what the function raises, and TimeoutError: the call goes on, for later callers."""
        if self._call is None or self._has_ended(self._call):
            self._call = asyncio.get_running_loop().run_in_executor(self._thread, self._timed)
        async with asyncio.timeout(timeout_s):
            result, _ = await asyncio.shield(self._call)
        return result

    def _timed(self) -> tuple[T, float]:
        return self._function(), time.monotonic()

    def _has_ended(self, call: asyncio.Future[tuple[T, float]]) -> bool:
        """Return whether the call is done and its result, if it has one, too old."""
        if not call.done() or call.cancelled() or call.exception() is not None:
            return call.done()
        return time.monotonic() - call.result()[1] >= self._max_age_s
