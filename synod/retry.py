"""Retry failed calls: exponential backoff with full jitter. Pure, except for the random source."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from synod.errors import SynodError, Unavailable


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retry at most `max_retries` times, with pauses whose bound grows from `base_s` to `max_s`.

    `uniform(low, high)` is the random source.
    """

    max_retries: int = 4
    base_s: float = 0.1
    max_s: float = 5.0
    uniform: Callable[[float, float], float] = random.uniform

    def backoff_s(self, attempt: int) -> float:
        """Return the pause in seconds after failed attempt n = 0, 1, ..

        It is uniform in [0, min(max_s, base_s * 2^n)].
        """
        return self.uniform(0.0, min(self.max_s, self.base_s * 2.0 ** min(attempt, 64)))

    def pause_s(self, error: SynodError, attempt: int, left_s: float) -> float | None:
        """Return the backoff plus the wait that the service asks for; None when a retry cannot help.

        It must end within `left_s`. A retry can help against Unavailable and its subclasses: the service or the
        network may recover.
        """
        if not isinstance(error, Unavailable) or attempt >= self.max_retries:
            return None
        pause_s = (error.retry_after_s or 0.0) + self.backoff_s(attempt)
        return pause_s if pause_s < left_s else None
