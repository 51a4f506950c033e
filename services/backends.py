"""Where scores come from: the `ScorerBackend` protocol, and `LocalBackend`, which runs scorers in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import numpy as np

from services.batching import Batcher
from services.scorers.base import Scorer, ScorerSpec, run_batch
from synod.contracts import ImageInput, Outcome, ScoreItem

__all__ = ["LocalBackend", "Readiness", "ScorerBackend", "ScorerSpec", "Staged", "batch_cost"]

MAX_QUEUED_IMAGES: Final = 2048  # of one scorer in one replica, the batch in flight included
PIXELS_PER_IMAGE: Final = 2**20  # 1024 x 1024


@dataclass(frozen=True, slots=True)
class Staged:
    """A request's decoded items, laid out once for all its scorers. `shared` is the backend's own handle to them."""

    items: tuple[ScoreItem, ...]
    shared: object | None = None


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether every replica of one scorer has loaded and passed its golden items; `reason` says what is missing."""

    ready: bool
    replicas: int
    wanted: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a replica found when it loaded a scorer: where its models run (None: it has none that we know of)."""

    load_s: float
    parameter_bytes: int
    device: str | None
    dtype: str | None


class ScorerBackend(Protocol):
    """Scores many items by one named scorer. Scoring is idempotent: a caller may ask again after a failure."""

    @property
    def specs(self) -> Mapping[str, ScorerSpec]:
        """The scorers served, by name."""
        ...

    async def stage(self, items: tuple[ScoreItem, ...], scorers: int) -> Staged:
        """Lay out `items` for `scorers` calls of `score`, so that all of them share one copy. Raises Overloaded."""
        ...

    async def score(self, scorer: str, staged: Staged, indexes: Sequence[int], timeout_s: float) -> list[Outcome]:
        """One outcome per index into `staged.items`, in order; unfinished ones are DeadlineExceeded failures.

        No item reaches the device after `timeout_s` from now. The answer comes then, or later with what had begun:
        whoever cannot wait leaves the call to itself, and cancels it some day.

        Raises Unavailable, ReplicaLost or Overloaded when the whole call came to nothing. Cancelling drops the work.
        """
        ...

    async def readiness(self) -> Mapping[str, Readiness]:
        """Per scorer, whether all of it can serve."""
        ...

    async def loaded(self) -> Mapping[str, Loaded]:
        """Of the scorers that have a ready replica, what one found. Never raises and waits for no one that loads."""
        ...


def batch_cost(spec: ScorerSpec, item: ScoreItem) -> int:
    """Images that `item` puts on the device: itself, and its references where the scorer embeds those too.

    Where the scorer's cost follows pixels (`spec.sized`), a decoded image counts once for each PIXELS_PER_IMAGE begun.
    """
    images = (item.image, *(item.references if "references" in spec.needs else ()))
    return sum(_units(image) for image in images) if spec.sized else len(images)


def _units(image: ImageInput | None) -> int:
    return -(-image.shape[0] * image.shape[1] // PIXELS_PER_IMAGE) if isinstance(image, np.ndarray) else 1


class LocalBackend:
    """Scorers of this process, each behind its own batcher: for tests and for scoring without a cluster. It makes no
    spans."""

    def __init__(
        self,
        scorers: Mapping[str, Scorer],
        *,
        max_batch_images: int = 32,
        batch_wait_s: float = 0.0,
        max_queued_images: int = MAX_QUEUED_IMAGES,
    ) -> None:
        self._specs = {name: scorer.spec for name, scorer in scorers.items()}
        self._batchers = {
            name: Batcher(
                partial(run_batch, scorer),
                max_images=max_batch_images,
                wait_s=batch_wait_s,
                max_queued=max_queued_images,
                cost=partial(batch_cost, scorer.spec),
            )
            for name, scorer in scorers.items()
        }

    @property
    def specs(self) -> Mapping[str, ScorerSpec]:
        return self._specs

    async def stage(self, items: tuple[ScoreItem, ...], scorers: int) -> Staged:
        return Staged(items)

    async def score(self, scorer: str, staged: Staged, indexes: Sequence[int], timeout_s: float) -> list[Outcome]:
        return await self._batchers[scorer].score([staged.items[i] for i in indexes], timeout_s)

    async def readiness(self) -> Mapping[str, Readiness]:
        return {name: Readiness(ready=True, replicas=1, wanted=1) for name in self._specs}

    async def loaded(self) -> Mapping[str, Loaded]:
        return {}

    async def close(self) -> None:
        """End the batchers; what waits becomes an Unavailable failure."""
        for batcher in self._batchers.values():
            await batcher.close()
