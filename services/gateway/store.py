"""Images by digest, and scores by what was measured: nothing is sent twice, nothing is measured twice.

A score is known by the digests of its image, of the item's other inputs and of its scorer. Whoever first asks for one
that is not there claims it and measures; who asks meanwhile waits for it. A failure is never kept: one that a retry
cannot help is handed to those who wait, after any other they may claim it themselves.

`MemoryStore` is a gateway's own. All methods take many at once and return plain records, so that a store behind a
remote call can serve several gateways (`services.cluster.store`); a claim is a lease: a gateway may die with it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol

import numpy as np

from synod.contracts import ImageData, Outcome, Pixels, Score, ScoreFailure
from synod.digest import digest_of
from synod.errors import PayloadTooLarge

ENTRY_BYTES: Final = 256  # what an image costs besides its bytes
MIN_LEASES: Final = 1024


class ScoreKey(NamedTuple):
    """What a score depends on, by digest: the image, the item's other inputs, the scorer's models and rules."""

    image: str
    inputs: str
    scorer: str


class Claim(Enum):
    """The answer for a score that is not there: yours to measure, or measured by someone else right now."""

    OWNED = "owned"
    IN_FLIGHT = "in_flight"


class Store(Protocol):
    """Shared memory of the gateways. Every method answers in the order of its arguments.

    `keeps_scores` False: scores are measured anew, and nothing needs to be claimed.
    """

    keeps_scores: bool

    async def put(self, images: Sequence[ImageData]) -> list[str]:
        """Keep images, as the most recently used. Raises PayloadTooLarge when they do not fit together."""
        ...

    async def get(self, digests: Sequence[str]) -> list[ImageData | None]:
        """The images of these digests; None for one that was never put, or is gone."""
        ...

    async def claim(self, keys: Sequence[ScoreKey], lease_s: float) -> list[Score | Claim]:
        """Return per key its score, or who computes it. An OWNED key must be settled within `lease_s`."""
        ...

    async def settle(self, outcomes: Mapping[ScoreKey, Outcome | None]) -> None:
        """What became of claimed keys: a score is kept, a failure is not; None gives the claim up."""
        ...

    async def wait(self, keys: Sequence[ScoreKey], timeout_s: float) -> list[Outcome | None]:
        """What others' claims came to; None where the claim was given up, ran out, or is open after `timeout_s`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Lease:
    ends_s: float
    outcome: asyncio.Future[Outcome | None]


class MemoryStore:
    """The store of one process and event loop: images up to `max_bytes`, `max_scores` scores, least recently used
    out first."""

    def __init__(self, max_bytes: int, max_scores: int) -> None:
        self._max_bytes = max_bytes
        self._max_scores = max_scores
        self.keeps_scores = max_scores > 0
        self._images: OrderedDict[str, ImageData] = OrderedDict()
        self._scores: OrderedDict[ScoreKey, Score] = OrderedDict()
        self._leases: dict[ScoreKey, _Lease] = {}
        self.bytes = 0

    async def put(self, images: Sequence[ImageData]) -> list[str]:
        size = sum(map(_size, images))
        if size > self._max_bytes:
            raise PayloadTooLarge(
                f"{len(images)} images take {size} bytes, the store holds {self._max_bytes} "
                "([store] max_image_bytes); put fewer at once, or send them with the request"
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
                self._scores[key] = outcome
                self._scores.move_to_end(key)
            if (lease := self._leases.pop(key, None)) is not None:
                lease.outcome.set_result(_handed_on(outcome))
        while len(self._scores) > self._max_scores:
            self._scores.popitem(last=False)

    async def wait(self, keys: Sequence[ScoreKey], timeout_s: float) -> list[Outcome | None]:
        now_s = asyncio.get_running_loop().time()
        leases = {key: lease for key in keys if key not in self._scores and (lease := self._leases.get(key))}
        longest_s = max((lease.ends_s - now_s for lease in leases.values()), default=0.0)
        if leases:
            await asyncio.wait({lease.outcome for lease in leases.values()}, timeout=max(0, min(timeout_s, longest_s)))
        return [
            lease.outcome.result() if (lease := leases.get(key)) and lease.outcome.done() else self._scores.get(key)
            for key in keys
        ]

    def _claim(self, key: ScoreKey, lease_s: float) -> Score | Claim:
        if (known := self._scores.get(key)) is not None:
            self._scores.move_to_end(key)
            return known
        loop = asyncio.get_running_loop()
        if len(self._leases) > max(self._max_scores, MIN_LEASES):  # those that dead gateways left
            self._leases = {key: lease for key, lease in self._leases.items() if lease.ends_s > loop.time()}
        held = self._leases.get(key)
        if held is not None and held.ends_s > loop.time():
            return Claim.IN_FLIGHT
        self._leases[key] = _Lease(loop.time() + lease_s, held.outcome if held else loop.create_future())
        return Claim.OWNED

    def _keep(self, digest: str, image: ImageData) -> None:
        if digest in self._images:
            self._images.move_to_end(digest)
            return
        self._images[digest] = image if isinstance(image, bytes) else _own(image)
        self.bytes += _size(image)
        while self.bytes > self._max_bytes:
            _, gone = self._images.popitem(last=False)
            self.bytes -= _size(gone)


def _size(image: ImageData) -> int:
    return ENTRY_BYTES + (len(image) if isinstance(image, bytes) else image.nbytes)


def _own(pixels: Pixels) -> Pixels:
    """A read-only copy: what came off the wire is a view that would keep the whole body alive."""
    copy = np.array(pixels, order="C")
    copy.setflags(write=False)
    return copy


def _handed_on(outcome: Outcome | None) -> Outcome | None:
    return None if isinstance(outcome, ScoreFailure) and outcome.retryable else outcome
