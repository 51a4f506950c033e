"""Bound the images that each caller has in flight in one gateway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from services.gateway.admission import Priority
from synod.errors import Overloaded, PayloadTooLarge


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller: the name of its token, its priority, and how many images it may have in flight (None: no limit)."""

    name: str = "anyone"
    priority: Priority = "training"
    max_images: int | None = None


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
                "retry later"
            )
        self._in_flight[caller.name] += images
        try:
            yield
        finally:
            self._in_flight[caller.name] -= images
