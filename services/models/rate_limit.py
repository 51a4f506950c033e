"""When a judge may be asked: a token budget for the life of the process, and a rate of requests. No I/O."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from synod.errors import DeadlineExceeded, JudgeBudget


@dataclass(slots=True)
class Charge:
    """What one request used. `unknown`: it may have used tokens that no answer counted. Neither: it used none."""

    tokens: int | None = None
    unknown: bool = False


class TokenBudget:
    """Tokens used so far, against a limit (None: no limit).

    A request in flight counts as much as the most expensive so far, and so does one whose use stays unknown. The first
    requests cost an unknown amount until they end, so that as many as run at once may exceed the limit.
    """

    def __init__(self, max_tokens: int | None) -> None:
        self._max_tokens = max_tokens
        self._lock = threading.Lock()
        self._in_flight = 0
        self._most = 0
        self.tokens = 0

    @property
    def limited(self) -> bool:
        """Return whether there is a limit."""
        return self._max_tokens is not None

    @contextmanager
    def request(self) -> Iterator[Charge]:
        """Count a request in flight until the block ends. Raises JudgeBudget when the budget is used up."""
        self._begin()
        charge = Charge()
        try:
            yield charge
        finally:
            self._end(charge)

    def _begin(self) -> None:
        with self._lock:
            tokens = self.tokens + self._in_flight * self._most
            if self._max_tokens is not None and tokens >= self._max_tokens:
                raise JudgeBudget(
                    f"the judge used {tokens} of limits.max_tokens = {self._max_tokens}; raise it and restart"
                )
            self._in_flight += 1

    def _end(self, charge: Charge) -> None:
        with self._lock:
            self._in_flight -= 1
            used = charge.tokens if charge.tokens is not None else self._most if charge.unknown else 0
            self.tokens += used
            self._most = max(self._most, used)


class RequestPacer:
    """Spaces the starts of requests at least 60 / `per_minute` seconds apart; None: no limit."""

    def __init__(self, per_minute: float | None, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._gap_s = 0.0 if per_minute is None else 60.0 / per_minute
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._next_s = -float("inf")

    def wait(self, ends_s: float) -> None:
        """Sleep until the caller's turn. Raises DeadlineExceeded, and takes no turn, if that is after `ends_s`."""
        with self._lock:
            now_s = self._clock()
            turn_s = max(now_s, self._next_s)
            if turn_s > ends_s:
                raise DeadlineExceeded("limits.requests_per_minute leaves no turn within three times limits.timeout_s")
            self._next_s = turn_s + self._gap_s
        if turn_s > now_s:
            self._sleep(turn_s - now_s)
