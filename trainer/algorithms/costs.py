"""What drawing and training cost: how often each part of the work was done, and its seconds. Pure."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field


@dataclass(frozen=True, slots=True)
class Work:
    """How often each part of the work is done, or the seconds that it took.

    answers   answers written
    steps     denoising steps of one image each
    images    images decoded, previews included
    scores    previews scored: the time in which nothing was left to do but wait for them, and that in which the policy
              read them itself
    rewards   images rewarded: likewise
    rollouts  rollouts in the update
    """

    answers: float = 0.0
    steps: float = 0.0
    images: float = 0.0
    scores: float = 0.0
    rewards: float = 0.0
    rollouts: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def times(self, factor: float) -> Work:
        """Return the work done `factor` times."""
        return Work(*(factor * one for one in astuple(self)))


@dataclass(frozen=True, slots=True)
class Costs:
    """Sums over all ranks and steps: the seconds of each part of the work, and how often it was done."""

    seconds: Work = field(default_factory=Work)
    done: Work = field(default_factory=Work)

    def add(self, seconds: Work, done: Work, memory: float = 1.0) -> Costs:
        """Add a step; what was before it counts `memory` times."""
        return Costs(self.seconds.times(memory) + seconds, self.done.times(memory) + done)

    def of(self, work: Work) -> float | None:
        """Return the seconds that this work takes; None if a part of it was never measured."""
        parts: list[tuple[float, float, float]] = list(
            zip(astuple(work), astuple(self.seconds), astuple(self.done), strict=True)
        )
        if any(count and not done for count, _, done in parts):
            return None
        return sum(count * seconds / done for count, seconds, done in parts if count)
