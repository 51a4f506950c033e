"""Images of a request -> pixels, in threads, each once, bounded in size and time. A bad one fails its item alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

from services.settings import LimitSettings
from synod.contracts import ImageInput, ScoreFailure, ScoreItem, UnreadableImage
from synod.errors import BadImage, DeadlineExceeded, ImageTooLarge, PayloadTooLarge, SynodError
from synod.images import ImageLimits, decode_item, pixel_count

HEADERS_HERE = 8  # read in the event loop; more of them in a thread


class Decoder:
    """The decoding threads of a gateway, until `close`."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = ImageLimits(max_bytes=limits.max_image_bytes, max_pixels=limits.max_image_pixels)
        assert limits.max_request_pixels is not None, "limits that were fitted to the machine"
        self._max_pixels = limits.max_request_pixels
        self._threads = ThreadPoolExecutor(thread_name_prefix="decode")

    def close(self) -> None:
        """End the threads; what they have begun is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def check(self, items: Sequence[ScoreItem]) -> None:
        """Raise PayloadTooLarge for more pixels than `max_request_pixels`, before any of them is decoded."""
        headers = sum(isinstance(one, bytes) for item in items for one in item.images())
        count = partial(request_pixels, items, self._limits.max_pixels)
        found = count() if headers <= HEADERS_HERE else await asyncio.to_thread(count)
        if found > self._max_pixels:
            raise PayloadTooLarge(
                f"the images of this request have {found} pixels, references included; the limit is "
                f"{self._max_pixels} ([limits] max_request_pixels): send fewer images in each request"
            )

    async def decode(self, items: Sequence[ScoreItem], ends_s: float) -> list[ScoreItem | ScoreFailure]:
        """Each item with its images decoded, or why not. References that items have in common are decoded once.

        Items of raw images alone are only checked, here and now.
        """
        room = _Room(3 * self._max_pixels)
        found = {i: _decode_one(item, self._limits, room) for i, item in enumerate(items) if not _has_encoded(item)}
        encoded = {i: item for i, item in enumerate(items) if i not in found}
        if encoded:
            found |= dict(zip(encoded, await self._unfold(list(encoded.values()), room, ends_s), strict=True))
        return [found[i] for i in range(len(items))]

    async def _unfold(self, items: Sequence[ScoreItem], room: _Room, ends_s: float) -> list[ScoreItem | ScoreFailure]:
        """The same for items with encoded images, in the threads."""
        loop = asyncio.get_running_loop()

        def work(item: ScoreItem) -> asyncio.Future[ScoreItem | ScoreFailure]:
            return loop.run_in_executor(self._threads, _decode_one, item, self._limits, room)

        common = {references: work(ScoreItem(references=references)) for references in set(map(_encoded, items))}
        own = [work(replace(item, references=()) if _encoded(item) else item) for item in items]
        late = ScoreFailure.of(DeadlineExceeded("the images were not decoded in time; raise 'timeout_ms' or retry"))
        try:
            await asyncio.wait([*common.values(), *own], timeout=max(0.0, ends_s - time.monotonic()))
            done = {future: future.result() if future.done() else late for future in (*common.values(), *own)}
            return [_joined(done[one], done[common[_encoded(item)]]) for item, one in zip(items, own, strict=True)]
        finally:
            for future in (*common.values(), *own):
                future.cancel()


def request_pixels(items: Iterable[ScoreItem], max_image_pixels: int) -> int:
    """Return the pixels that items have when decoded, by headers alone.

    Equal references of several items count once, as files are decoded and arrays by digest are kept once. An image over
    `max_image_pixels` counts nothing: it is never decoded, and fails its item alone.
    """
    total, seen = 0, set[tuple[object, ...]]()
    for item in items:
        images: tuple[ImageInput, ...] = () if item.image is None else (item.image,)
        shared = tuple(one if isinstance(one, bytes) else id(one) for one in item.references)
        mixed = not _encoded(item) and any(isinstance(one, bytes) for one in item.references)
        if mixed or shared not in seen:
            images += item.references
            seen.add(shared)
        total += sum(size for size in map(pixel_count, images) if size <= max_image_pixels)
    return total


@dataclass(slots=True)
class _Room:
    """Bytes of pixels that a request may still unfold to: a hostile file may declare its size twice."""

    left_bytes: int
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        if self.left_bytes < 0:
            raise ImageTooLarge("the images of this request are too large together; send fewer at once")

    def take(self, item: ScoreItem) -> None:
        with self._lock:
            self.left_bytes -= sum(image.nbytes for image in item.images() if not isinstance(image, bytes))


def _decode_one(item: ScoreItem, limits: ImageLimits, room: _Room) -> ScoreItem | ScoreFailure:
    try:
        room.check()
        _check_readable(item)
        decoded = decode_item(item, limits)
        room.take(decoded)
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


def _encoded(item: ScoreItem) -> tuple[bytes, ...]:
    """The item's references when all of them are encoded, so that equal ones are seen; else none."""
    encoded = tuple(reference for reference in item.references if isinstance(reference, bytes))
    return encoded if len(encoded) == len(item.references) else ()


def _joined(own: ScoreItem | ScoreFailure, common: ScoreItem | ScoreFailure) -> ScoreItem | ScoreFailure:
    if isinstance(own, ScoreFailure):
        return own
    if isinstance(common, ScoreFailure):
        return common
    return replace(own, references=own.references or common.references)
