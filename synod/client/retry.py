"""When to ask again. Pure but for the dice, which are given."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from synod.errors import SynodError, Unavailable


@dataclass(frozen=True, slots=True)
class Retry:
    """At most `limit` times more, after growing pauses with full jitter: uniform in [0, first_s * 2^n], n = 0, 1, ..,
    capped at `longest_s`, on top of what the service asks to wait. `uniform` throws the dice."""

    limit: int = 4
    first_s: float = 0.1
    longest_s: float = 5.0
    uniform: Callable[[float, float], float] = random.uniform

    def pause_s(self, error: SynodError, attempt: int, left_s: float) -> float | None:
        """Seconds to wait after failed attempt 0, 1, ..; None when asking again cannot help, or not within `left_s`.

        What can help is what the service, or the way to it, may do better soon: Unavailable and its children.
        """
        if not isinstance(error, Unavailable) or attempt >= self.limit:
            return None
        jitter_s = self.uniform(0.0, min(self.longest_s, self.first_s * 2.0**attempt))
        pause_s = (error.retry_after_s or 0.0) + jitter_s
        return pause_s if pause_s < left_s else None
