"""Bound what is in flight in one gateway: the images of each caller, and the decoded pixels of all requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from services.gateway.admission import SHORTEST_RETRY_S, Priority
from services.settings import HELD_REQUESTS
from synod.errors import Overloaded, PayloadTooLarge


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller: the name of its token, its priority, and how many images it may have in flight (None: no limit)."""

    name: str = "anyone"
    priority: Priority = "training"
    max_images: int | None = None


ANONYMOUS: Final = Caller()


class Quotas:
    """The images that each caller has in flight, by name."""

    def __init__(self) -> None:
        self._in_flight: Counter[str] = Counter()

    @contextmanager
    def use(self, caller: Caller, images: int) -> Iterator[None]:
        """Count `images` against the caller's quota inside the block.

        Raises Overloaded, or PayloadTooLarge for more images than the whole quota.
        """
        limit, in_flight = caller.max_images, self._in_flight[caller.name]
        if limit is not None and images > limit:
            raise PayloadTooLarge(f"{images} items, the quota of '{caller.name}' is {limit}; send several requests")
        if limit is not None and in_flight + images > limit:
            raise Overloaded(
                f"'{caller.name}' has {in_flight} images in flight and {images} more exceed its quota {limit}; "
                "retry later",
                retry_after_s=SHORTEST_RETRY_S,
            )
        self._in_flight[caller.name] += images
        try:
            yield
        finally:
            self._in_flight[caller.name] -= images


class DecodedPixels:
    """The decoded pixels that a gateway holds: at most HELD_REQUESTS times `max_request_pixels`, over all requests.

    Images are decoded before they wait for their turn, and admission counts an image as one whatever its size.
    """

    def __init__(self, max_request_pixels: int) -> None:
        self.held = 0
        self._limit = HELD_REQUESTS * max_request_pixels

    def take(self, pixels: int) -> None:
        """Add the pixels of a request; `release` must follow. With none held, accept any number. Raises Overloaded."""
        if self.held and self.held + pixels > self._limit:
            raise Overloaded(
                f"the gateway holds {self.held} decoded pixels and {pixels} more exceed the limit {self._limit} "
                f"({HELD_REQUESTS} x [limits] max_request_pixels); retry later, or send fewer images at once",
                retry_after_s=SHORTEST_RETRY_S,
            )
        self.held += pixels

    def release(self, pixels: int) -> None:
        """Subtract the pixels of a request, once they are no longer needed."""
        self.held -= pixels
