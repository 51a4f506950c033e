"""Store images by digest and scores by what they were computed from, so that nothing is sent or computed twice.

The first request that needs a missing score claims it and computes it; other requests wait for it meanwhile. A failure
is never stored: the waiting requests receive it if a retry cannot help, and else may claim the score themselves.

A gateway has its own `MemoryStore`. All methods take many keys at once and return plain records, so that a store behind
a remote call can serve several gateways (`services.cluster.store`). A claim is a lease, since its gateway may die.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from synod.contracts import ImageData, Outcome, Pixels, Score, ScoreFailure
from synod.digest import digest_of
from synod.errors import PayloadTooLarge

ENTRY_BYTES: Final = 256  # the overhead of an image
VALUES_PER_SCORE: Final = 64  # of a detail: those of a usual score, about 4 KiB in memory
MIN_LEASES: Final = 1024


class ScoreKey(NamedTuple):
    """The digests of what a score depends on: the image, the item's other inputs, the scorer's models and rules."""

    image: str
    inputs: str
    scorer: str


class Claim(Enum):
    """The state of a missing score: owned by the claiming request, or in flight in another one."""

    OWNED = "owned"
    IN_FLIGHT = "in_flight"


class Store(Protocol):
    """Stores images and scores. Every method returns its results in the order of its arguments.

    If `keeps_scores` is False, scores are always computed, and none needs to be claimed.
    """

    keeps_scores: bool

    async def put(self, images: Sequence[ImageData]) -> list[str]:
        """Store images and return their digests. Raises PayloadTooLarge if they do not fit together."""
        ...

    async def get(self, digests: Sequence[str]) -> list[ImageData | None]:
        """Return the images of these digests; None for one that was never stored or has been dropped."""
        ...

    async def claim(self, keys: Sequence[ScoreKey], lease_s: float) -> list[Score | Claim]:
        """Return per key its score, or who computes it. An OWNED key must be settled within `lease_s`."""
        ...

    async def settle(self, outcomes: Mapping[ScoreKey, Outcome | None]) -> None:
        """End claims: a score is stored, a failure is not, and None gives the claim up."""
        ...

    async def wait(self, keys: Sequence[ScoreKey], timeout_s: float) -> list[Outcome | None]:
        """Wait for the outcomes of other claims, until one is given up or expires: its caller may claim it.

        None: given up, expired, or still open then or after `timeout_s`.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Lease:
    deadline_s: float
    outcome: asyncio.Future[Outcome | None]


class MemoryStore:
    """A store in this process, for one event loop. Beyond `max_bytes` of images and `max_scores` scores, it drops the
    least recently used. A score counts once per started VALUES_PER_SCORE of its detail, so that memory is bounded."""

    def __init__(self, max_bytes: int, max_scores: int) -> None:
        self._max_bytes = max_bytes
        self._max_scores = max_scores
        self.keeps_scores = max_scores > 0
        self._images: OrderedDict[str, ImageData] = OrderedDict()
        self._scores: OrderedDict[ScoreKey, Score] = OrderedDict()
        self._leases: dict[ScoreKey, _Lease] = {}
        self.bytes = self._counted = 0

    async def put(self, images: Sequence[ImageData]) -> list[str]:
        size = sum(map(_size, images))
        if size > self._max_bytes:
            raise PayloadTooLarge(
                f"{len(images)} images take {size} bytes, the store holds {self._max_bytes} "
                "([store] max_image_bytes); upload fewer at once, or send them with the request"
            )
        digests = await asyncio.to_thread(lambda: [digest_of(image) for image in images])
        for digest, image in zip(digests, images, strict=True):
            self._keep(digest, image)
        return digests

    async def get(self, digests: Sequence[str]) -> list[ImageData | None]:
        for digest in digests:
            if digest in self._images:
                self._images.move_to_end(digest)
        return [self._images.get(digest) for digest in digests]

    async def claim(self, keys: Sequence[ScoreKey], lease_s: float) -> list[Score | Claim]:
        return [self._claim(key, lease_s) for key in keys]

    async def settle(self, outcomes: Mapping[ScoreKey, Outcome | None]) -> None:
        for key, outcome in outcomes.items():
            if isinstance(outcome, Score):
                self._drop(key)
                self._scores[key] = outcome
                self._counted += _count(outcome)
            if (lease := self._leases.pop(key, None)) is not None:
                lease.outcome.set_result(_for_waiting(outcome))
        while self._counted > self._max_scores:
            self._drop(next(iter(self._scores)))

    async def wait(self, keys: Sequence[ScoreKey], timeout_s: float) -> list[Outcome | None]:
        loop = asyncio.get_running_loop()
        leases = {key: lease for key in keys if key not in self._scores and (lease := self._leases.get(key))}
        pending = {lease.outcome for lease in leases.values()}
        ends_s = min([loop.time() + timeout_s, *(lease.deadline_s for lease in leases.values())])
        while pending:
            left_s = max(0.0, ends_s - loop.time())
            done, pending = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not done or any(outcome.result() is None for outcome in done):
                break
        return [
            lease.outcome.result() if (lease := leases.get(key)) and lease.outcome.done() else self._scores.get(key)
            for key in keys
        ]

    def _claim(self, key: ScoreKey, lease_s: float) -> Score | Claim:
        if (known := self._scores.get(key)) is not None:
            self._scores.move_to_end(key)
            return known
        loop = asyncio.get_running_loop()
        if len(self._leases) > max(self._max_scores, MIN_LEASES):  # drop those of dead gateways
            self._leases = {key: lease for key, lease in self._leases.items() if lease.deadline_s > loop.time()}
        held = self._leases.get(key)
        if held is not None and held.deadline_s > loop.time():
            return Claim.IN_FLIGHT
        self._leases[key] = _Lease(loop.time() + lease_s, held.outcome if held else loop.create_future())
        return Claim.OWNED

    def _drop(self, key: ScoreKey) -> None:
        if (gone := self._scores.pop(key, None)) is not None:
            self._counted -= _count(gone)

    def _keep(self, digest: str, image: ImageData) -> None:
        if digest in self._images:
            self._images.move_to_end(digest)
            return
        self._images[digest] = image if isinstance(image, bytes) else _own(image)
        self.bytes += _size(image)
        while self.bytes > self._max_bytes:
            _, gone = self._images.popitem(last=False)
            self.bytes -= _size(gone)


def _count(score: Score) -> int:
    return max(1, -(-_values(score.detail) // VALUES_PER_SCORE))


def _values(detail: Any) -> int:
    """Return how many strings and numbers a detail has, keys included."""
    if isinstance(detail, Mapping):
        return len(detail) + sum(map(_values, detail.values()))
    return sum(map(_values, detail)) if isinstance(detail, list | tuple) else 1


def _size(image: ImageData) -> int:
    return ENTRY_BYTES + (len(image) if isinstance(image, bytes) else image.nbytes)


def _own(pixels: Pixels) -> Pixels:
    """Return a read-only copy: pixels from the wire are a view that would keep the whole body in memory."""
    copy = np.array(pixels, order="C")
    copy.setflags(write=False)
    return copy


def _for_waiting(outcome: Outcome | None) -> Outcome | None:
    return None if isinstance(outcome, ScoreFailure) and outcome.retryable else outcome
