"""Split requests to a service's limits. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import numpy as np

from synod.codec import Codec
from synod.contracts import ImageData, ImageInput, ImageRef, ScoreItem, ScoreRequest
from synod.images import pixel_count

T = TypeVar("T")
P = TypeVar("P", ImageInput, ImageInput | None)
SMALL_ITEMS, SMALL_BYTES = 64, 2**21  # a request within both is sent without asking for the limits first
_IMAGE_OVERHEAD_BYTES: Final = 64  # keys, lengths and shape of one image, or its digest


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold."""

    max_items: float = math.inf
    max_body_bytes: float = math.inf
    max_request_pixels: float = math.inf

    @classmethod
    def from_catalogue(cls, catalogue: Mapping[str, Any]) -> Limits:
        """Read the limits that a service publishes; those it does not publish are infinite."""
        published = catalogue.get("limits")
        if not isinstance(published, dict):
            return cls()
        known = {name: published[name] for name in cls.__dataclass_fields__ if name in published}
        return cls(**{name: value for name, value in known.items() if isinstance(value, int) and value > 0})


def is_small(request: ScoreRequest) -> bool:
    """Return whether any service with ordinary limits accepts the request whole."""
    images = (image for item in request.items for image in item.images())
    return len(request.items) <= SMALL_ITEMS and sum(map(image_bytes, images)) <= SMALL_BYTES


def split_request(
    request: ScoreRequest, codec: Codec, limits: Limits, images: Mapping[str, ImageData] | None = None
) -> list[ScoreRequest]:
    """Split a request, in order, into as few chunks as the limits allow.

    Each chunk has a `request_id` of its own. An item that exceeds a limit by itself is a chunk. `images` holds those
    known of the images that items name by digest. Raises InvalidRequest for what cannot be sent.
    """
    envelope = len(codec.encode_request(replace(request, items=(ScoreItem(),)))) + _IMAGE_OVERHEAD_BYTES
    sizes = [(1, _item_bytes(item, codec), _item_pixels(item, images or {})) for item in request.items]
    maxima = (limits.max_items, limits.max_body_bytes - envelope, limits.max_request_pixels)
    chunks = list(split_by_size(request.items, sizes, maxima))
    if len(chunks) < 2:
        return [request]
    return [replace(request, items=items, request_id=f"{request.request_id}/{i}") for i, items in enumerate(chunks)]


def split_by_size(
    values: Sequence[T], sizes: Sequence[Sequence[int]], maxima: Sequence[float]
) -> Iterator[tuple[T, ...]]:
    """Split values into consecutive chunks whose sizes, of each kind, sum to at most `maxima`.

    A value that is larger makes a chunk of its own.
    """
    chunk: list[T] = []
    totals = [0] * len(maxima)
    for value, size in zip(values, sizes, strict=True):
        if chunk and any(total + one > limit for total, one, limit in zip(totals, size, maxima, strict=True)):
            yield tuple(chunk)
            chunk, totals = [], [0] * len(maxima)
        chunk.append(value)
        totals = [total + one for total, one in zip(totals, size, strict=True)]
    if chunk:
        yield tuple(chunk)


def image_bytes(image: ImageData) -> int:
    """Return an image's bytes on the wire, in a format that carries bytes unencoded."""
    return _IMAGE_OVERHEAD_BYTES + (len(image) if isinstance(image, bytes) else image.nbytes)


def _item_bytes(item: ScoreItem, codec: Codec) -> int:
    bare = replace(item, image=_placeholder(item.image), references=tuple(map(_placeholder, item.references)))
    return sum(map(image_bytes, item.images())) + len(codec.encode_request(ScoreRequest((bare,))))


def _item_pixels(item: ScoreItem, images: Mapping[str, ImageData]) -> int:
    """Return an upper bound: the service counts references that items share only once."""
    named = (images.get(one.digest) for one in (*item.references, item.image) if isinstance(one, ImageRef))
    return sum(pixel_count(one) for one in (*item.images(), *named) if one is not None)


def _placeholder(image: P) -> P | bytes:
    return b"" if isinstance(image, bytes | np.ndarray) else image
