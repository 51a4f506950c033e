"""When a judge may be asked: so many requests a minute, so many tokens and dollars in the process's life. No I/O."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from services.models.settings import JudgeLimits
from synod.errors import DeadlineExceeded, JudgeBudget


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request, as the server counts them."""

    prompt: int
    completion: int

    @property
    def total(self) -> int:
        return self.prompt + self.completion


@dataclass(slots=True)
class Account:
    """What became of one request: its usage, or that nobody knows it. Neither: it cost nothing."""

    used: Usage | None = None
    unknown: bool = False


class Budget:
    """Tokens and dollars spent so far, against their limits.

    A request in flight counts as much as the dearest so far, and so does one whose usage stays unknown. What the first
    requests cost is not known before they end, so that as many as run at once may pass a limit.
    """

    def __init__(self, limits: JudgeLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._open = 0
        self._dearest_tokens, self._dearest_dollars = 0, 0.0
        self.tokens, self.dollars = 0, 0.0

    @property
    def limited(self) -> bool:
        return self._limits.max_tokens is not None or self._limits.max_dollars is not None

    @contextmanager
    def request(self) -> Iterator[Account]:
        """Holds a request's share while it runs. Raises JudgeBudget where there is none left."""
        self._take()
        account = Account()
        try:
            yield account
        finally:
            self._settle(account)

    def _take(self) -> None:
        most_tokens, most_dollars = self._limits.max_tokens, self._limits.max_dollars
        with self._lock:
            tokens = self.tokens + self._open * self._dearest_tokens
            dollars = self.dollars + self._open * self._dearest_dollars
            if most_tokens is not None and tokens >= most_tokens:
                raise JudgeBudget(f"the judge used {tokens} of limits.max_tokens = {most_tokens}; raise it and restart")
            if most_dollars is not None and dollars >= most_dollars:
                raise JudgeBudget(
                    f"the judge used ${dollars:.4f} of limits.max_dollars = {most_dollars:g}; raise it and restart"
                )
            self._open += 1

    def _settle(self, account: Account) -> None:
        with self._lock:
            self._open -= 1
            tokens, dollars = (self._dearest_tokens, self._dearest_dollars) if account.unknown else (0, 0.0)
            if account.used is not None:
                tokens, dollars = account.used.total, self._price(account.used)
            self.tokens += tokens
            self.dollars += dollars
            self._dearest_tokens = max(self._dearest_tokens, tokens)
            self._dearest_dollars = max(self._dearest_dollars, dollars)

    def _price(self, used: Usage) -> float:
        prompt, completion = self._limits.dollars_per_million_prompt, self._limits.dollars_per_million_completion
        return (used.prompt * (prompt or 0.0) + used.completion * (completion or 0.0)) / 1e6


class Pace:
    """Starts of requests at least 60 / `per_minute` seconds apart; None: no limit."""

    def __init__(self, per_minute: float | None, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._gap_s = 0.0 if per_minute is None else 60.0 / per_minute
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._next_s = -float("inf")

    def wait(self, ends_s: float) -> None:
        """Sleep until the caller's turn. Raises DeadlineExceeded, and takes no turn, where that is after `ends_s`."""
        with self._lock:
            now_s = self._clock()
            turn_s = max(now_s, self._next_s)
            if turn_s > ends_s:
                raise DeadlineExceeded("limits.requests_per_minute leaves no turn within limits.patience_s")
            self._next_s = turn_s + self._gap_s
        if turn_s > now_s:
            self._sleep(turn_s - now_s)
