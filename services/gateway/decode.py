"""Decode the images of a request in threads, each once, within limits of size and time. A bad one fails its item.

Decoding takes 4 bytes a pixel besides the result (PNG, JPEG) or up to 14 (WebP, progressive JPEG), so the pixels that
all threads decode at once are bounded, too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from services.gateway.images import encoded_references
from services.settings import DECODING_SHARE, LimitSettings
from synod.contracts import ScoreFailure, ScoreItem, UnreadableImage
from synod.errors import BadImage, DeadlineExceeded, ImageTooLarge, SynodError
from synod.images import ImageLimits, decode_item, pixel_count

Decoded = ScoreItem | ScoreFailure


class Decoder:
    """Decodes in a pool of threads, until `close`. `limits` must have `max_request_pixels`."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = ImageLimits(max_bytes=limits.max_image_bytes, max_pixels=limits.max_image_pixels)
        assert limits.max_request_pixels is not None
        self._max_pixels = limits.max_request_pixels
        self._decoding = _PixelSemaphore(limits.max_request_pixels // DECODING_SHARE)
        self._threads = ThreadPoolExecutor(thread_name_prefix="decode")

    def close(self) -> None:
        """End the threads without waiting for the images that they are decoding."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def decode(self, items: Sequence[ScoreItem], deadline_s: float) -> list[Decoded]:
        """Return each item with its images decoded, or its failure. References that items share are decoded once.

        What is not decoded by `deadline_s` (monotonic) fails. Items without encoded images are only checked, at once.
        """
        budget = _PixelBudget(self._max_pixels)
        found = {i: _decode(item, self._limits, budget) for i, item in enumerate(items) if not _has_encoded(item)}
        encoded = {i: item for i, item in enumerate(items) if i not in found}
        if encoded:
            found |= dict(zip(encoded, await self._decode_all(list(encoded.values()), budget, deadline_s), strict=True))
        return [found[i] for i in range(len(items))]

    async def _decode_all(self, items: Sequence[ScoreItem], budget: _PixelBudget, deadline_s: float) -> list[Decoded]:
        loop = asyncio.get_running_loop()

        def start(item: ScoreItem) -> asyncio.Future[Decoded]:
            return loop.run_in_executor(self._threads, self._decode_in_turn, item, budget)

        shared = {
            references: start(ScoreItem(references=references)) for references in set(map(encoded_references, items))
        }
        own = [start(replace(item, references=()) if encoded_references(item) else item) for item in items]
        late = ScoreFailure.of(DeadlineExceeded("the images were not decoded in time; raise 'timeout_ms' or retry"))
        try:
            await asyncio.wait([*shared.values(), *own], timeout=max(0.0, deadline_s - time.monotonic()))
            done = {future: future.result() if future.done() else late for future in (*shared.values(), *own)}
            references = [done[shared[encoded_references(item)]] for item in items]
            return [_join(done[one], refs) for one, refs in zip(own, references, strict=True)]
        finally:
            for future in (*shared.values(), *own):
                future.cancel()

    def _decode_in_turn(self, item: ScoreItem, budget: _PixelBudget) -> Decoded:
        """Decode an item as soon as the pixels of its largest image may be in decoding, too."""
        sizes = [pixel_count(image) for image in item.images() if isinstance(image, bytes)]
        with self._decoding.hold(max((size for size in sizes if size <= self._limits.max_pixels), default=0)):
            return _decode(item, self._limits, budget)


class _PixelSemaphore:
    """A semaphore of `limit` pixels for threads, in order of arrival. One thread alone may hold more."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._first = threading.Lock()  # of the thread that waits next
        self._released = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Wait until `pixels` more fit, and hold them inside the block."""
        with self._first, self._released:
            self._released.wait_for(lambda: not self._held or self._held + pixels <= self._limit)
            self._held += pixels
        try:
            yield
        finally:
            with self._released:
                self._held -= pixels
                self._released.notify_all()


@dataclass(slots=True)
class _PixelBudget:
    """The decoded pixels of a request, up to a limit. A hostile file may be larger than its header says."""

    limit: int
    decoded: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        if self.decoded > self.limit:
            raise ImageTooLarge(
                f"the images of this request decoded before this one have {self.decoded:,} pixels; the limit is "
                f"{self.limit:,} ([limits] max_request_pixels). Send fewer images in each request"
            )

    def take(self, item: ScoreItem) -> None:
        with self._lock:
            self.decoded += sum(image.nbytes // 3 for image in item.images() if not isinstance(image, bytes))


def _decode(item: ScoreItem, limits: ImageLimits, budget: _PixelBudget) -> Decoded:
    try:
        budget.check()
        _check_readable(item)
        decoded = decode_item(item, limits)
        budget.take(decoded)
        return decoded
    except SynodError as error:
        return ScoreFailure.of(error)


def _check_readable(item: ScoreItem) -> None:
    named = [("image", item.image), *((f"references[{i}]", one) for i, one in enumerate(item.references))]
    for path, image in named:
        if isinstance(image, UnreadableImage):
            raise BadImage(f"{path}: {image.why}")


def _has_encoded(item: ScoreItem) -> bool:
    return any(isinstance(image, bytes) for image in item.images())


def _join(item: Decoded, references: Decoded) -> Decoded:
    """Put shared references into an item decoded without them."""
    if isinstance(item, ScoreFailure):
        return item
    if isinstance(references, ScoreFailure):
        return references
    return replace(item, references=item.references or references.references)
