"""When a run stops because a reward that was not trained on no longer improves. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """The best mean so far of a watched reward, and how many evaluations have passed since.

    best   None before the first evaluation with a score
    since  evaluations without a higher mean; one without any score does not count
    """

    best: float | None = None
    since: int = 0

    def update(self, mean: float | None) -> EarlyStop:
        """Add one evaluation; None if it has no score. Raises ValueError for a mean that is not finite."""
        if mean is None:
            return self
        if not math.isfinite(mean):
            raise ValueError(f"the watched mean is {mean}; give a finite number, or None if nothing was scored")
        return EarlyStop(mean) if self.best is None or mean > self.best else EarlyStop(self.best, self.since + 1)

    def is_due(self, patience: int) -> bool:
        """Return whether `patience` evaluations have passed without a higher mean."""
        return self.since >= patience
