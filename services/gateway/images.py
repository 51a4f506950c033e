"""Check uploads and request sizes, and replace digests by stored images."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from services.gateway.store import Store
from services.settings import LimitSettings
from synod.contracts import ImageData, ImageInput, ImageRef, ScoreItem
from synod.errors import ImageTooLarge, PayloadTooLarge, UnknownImage
from synod.images import pixel_count

MAX_HEADERS_IN_LOOP: Final = 8  # the headers of more images are read in a thread


def check_upload(images: Sequence[ImageData], limits: LimitSettings) -> None:
    """Raise PayloadTooLarge for too many images, ImageTooLarge for one that is too large."""
    if len(images) > limits.max_items:
        raise PayloadTooLarge(
            f"{len(images)} images, the limit is {limits.max_items} ([limits] max_items); send several requests"
        )
    for i, image in enumerate(images):
        size = len(image) if isinstance(image, bytes) else image.nbytes
        limit = limits.max_image_bytes if isinstance(image, bytes) else 3 * limits.max_image_pixels
        if size > limit:
            raise ImageTooLarge(f"images[{i}] has {size} bytes, the limit is {limit}; send a smaller image")


async def resolve_digests(items: Sequence[ScoreItem], store: Store) -> tuple[ScoreItem, ...]:
    """Replace image digests by the stored images. Raises UnknownImage with all digests that the store lacks."""
    digests = list(dict.fromkeys(image.digest for item in items for image in _all(item) if isinstance(image, ImageRef)))
    if not digests:
        return tuple(items)
    stored = dict(zip(digests, await store.get(digests), strict=True))
    missing = [digest for digest, image in stored.items() if image is None]
    if missing:
        raise UnknownImage(
            f"the service does not have {len(missing)} of the images: {', '.join(missing)}; PUT them to /v1/images, "
            "then send the request again",
            missing,
        )

    def resolve(image: ImageInput) -> ImageInput:
        if not isinstance(image, ImageRef):
            return image
        found = stored[image.digest]
        assert found is not None
        return found

    return tuple(
        replace(
            item,
            image=None if item.image is None else resolve(item.image),
            references=tuple(map(resolve, item.references)),
        )
        for item in items
    )


async def check_pixels(items: Sequence[ScoreItem], limits: LimitSettings) -> int:
    """Return how many pixels the items will have when decoded. Raises PayloadTooLarge for over `max_request_pixels`."""
    assert limits.max_request_pixels is not None
    headers = sum(isinstance(image, bytes) for item in items for image in item.images())
    count = partial(request_pixels, items, limits.max_image_pixels)
    pixels = count() if headers <= MAX_HEADERS_IN_LOOP else await asyncio.to_thread(count)
    if pixels > limits.max_request_pixels:
        raise PayloadTooLarge(
            f"the images of this request have {pixels} pixels, references included; the limit is "
            f"{limits.max_request_pixels} ([limits] max_request_pixels): send fewer images in each request"
        )
    return pixels


def request_pixels(items: Iterable[ScoreItem], max_image_pixels: int) -> int:
    """Return how many pixels the items will have when decoded, from the headers of their images.

    Equal references of several items count once: equal files are decoded once, and arrays of one digest are one object.
    An image over `max_image_pixels` counts as 0: it is never decoded and fails its item.
    """
    total, seen = 0, set[tuple[object, ...]]()
    for item in items:
        images: tuple[ImageInput, ...] = () if item.image is None else (item.image,)
        shared = tuple(one if isinstance(one, bytes) else id(one) for one in item.references)
        mixed = not encoded_references(item) and any(isinstance(one, bytes) for one in item.references)
        if mixed or shared not in seen:
            images += item.references
            seen.add(shared)
        total += sum(size for size in map(pixel_count, images) if size <= max_image_pixels)
    return total


def encoded_references(item: ScoreItem) -> tuple[bytes, ...]:
    """Return the item's references if all are encoded files, which can be compared; else none."""
    encoded = tuple(reference for reference in item.references if isinstance(reference, bytes))
    return encoded if len(encoded) == len(item.references) else ()


def _all(item: ScoreItem) -> tuple[ImageInput, ...]:
    return item.references if item.image is None else (*item.references, item.image)
