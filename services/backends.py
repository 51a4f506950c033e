"""ScorerBackend: the gateway's interface to the scorers; and LocalBackend, which scores in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from services.batching import Batcher
from services.scorers.base import Scorer, ScorerSpec, run_batch
from synod.contracts import ImageInput, Outcome, ScoreItem
from synod.images import pixel_count

__all__ = ["LocalBackend", "Readiness", "ScorerBackend", "ScorerSpec", "Staged", "batch_cost", "batch_images"]

MAX_QUEUED_IMAGES: Final = 2048  # of one scorer in one replica, including the running batch
PIXELS_PER_IMAGE: Final = 2**20  # 1024 x 1024


@dataclass(frozen=True, slots=True)
class Staged:
    """A request's decoded items, prepared once for all its scorers.

    `shared` is the backend's reference to them; `items` is empty then, so that the gateway holds no second copy.
    """

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
    """The load report of a scorer in one replica. `device` and `dtype` are None if it holds no model parameters."""

    load_s: float
    parameter_bytes: int
    device: str | None
    dtype: str | None


class ScorerBackend(Protocol):
    """Scores items with named scorers. Scoring is idempotent, so a caller may retry after a failure."""

    @property
    def specs(self) -> Mapping[str, ScorerSpec]:
        """The available scorers, by name."""
        ...

    async def stage(self, items: tuple[ScoreItem, ...], scorers: int) -> Staged:
        """Prepare one copy of `items` for `scorers` calls of `score`. Raises Overloaded."""
        ...

    async def score(self, scorer: str, staged: Staged, indexes: Sequence[int], timeout_s: float) -> list[Outcome]:
        """Return one outcome per index into the staged items, in order; unfinished ones are DeadlineExceeded failures.

        No item starts to run after `timeout_s`. The call returns then, or when the running batch ends: callers that
        cannot wait must detach from the call and cancel it later.

        Raises Unavailable, ReplicaLost or Overloaded if the whole call failed. Cancelling a call drops its items.
        """
        ...

    async def readiness(self) -> Mapping[str, Readiness]:
        """Return the readiness of each scorer."""
        ...

    async def loaded(self) -> Mapping[str, Loaded]:
        """Return the load report of each scorer that has a ready replica. Never raises or waits for loading."""
        ...


def batch_cost(spec: ScorerSpec, item: ScoreItem) -> int:
    """Return the cost of one item in images: its image, and its references if the scorer needs them.

    If the scorer's cost depends on pixels (`spec.sized`), an image counts once per started PIXELS_PER_IMAGE; the size
    of one that is not decoded yet is in its header.
    """
    return batch_images(spec, (item,))


def batch_images(spec: ScorerSpec, items: Sequence[ScoreItem]) -> int:
    """Return the cost of `items` in one batch, in images: references that items share count once.

    Scorers embed each distinct reference once per batch, and equal references of a request are decoded to one array.
    """
    images: list[ImageInput | None] = [item.image for item in items]
    if "references" in spec.needs:
        images += {id(one): one for item in items for one in item.references}.values()
    return sum(map(_units, images)) if spec.sized else len(images)


def _units(image: ImageInput | None) -> int:
    return 1 if image is None else max(1, -(-pixel_count(image) // PIXELS_PER_IMAGE))


class LocalBackend:
    """Scorers in this process, each with its own batcher, for tests and for scoring without Ray. Records no spans."""

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
                cost=partial(batch_images, scorer.spec),
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
        """Close the batchers. Waiting items become Unavailable failures."""
        for batcher in self._batchers.values():
            await batcher.close()
