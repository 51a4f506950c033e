"""Requests cut to a service's limits. Pure."""

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
_FRAME_BYTES: Final = 64  # of one image: its keys, lengths and shape, or its digest's


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold."""

    max_items: float = math.inf
    max_body_bytes: float = math.inf
    max_request_pixels: float = math.inf

    @classmethod
    def of(cls, catalogue: Mapping[str, Any]) -> Limits:
        """A service's limits; what it does not tell is no limit."""
        told = catalogue.get("limits")
        known = {name: told[name] for name in cls.__dataclass_fields__ if isinstance(told, dict) and name in told}
        return cls(**{name: value for name, value in known.items() if isinstance(value, int) and value > 0})


def is_small(request: ScoreRequest) -> bool:
    """Whether any service of ordinary limits takes the request whole."""
    images = (image for item in request.items for image in item.images())
    return len(request.items) <= SMALL_ITEMS and sum(map(content_bytes, images)) <= SMALL_BYTES


def chunked(
    request: ScoreRequest, codec: Codec, limits: Limits, images: Mapping[str, ImageData] | None = None
) -> list[ScoreRequest]:
    """The request in as few pieces as keep the limits, in order, each with a `request_id` of its own made from the
    whole's. An item that is over the limit by itself stays alone. `images` are those that items name by digest, as
    far as they are known. Raises InvalidRequest for what cannot be sent."""
    envelope = len(codec.encode_request(replace(request, items=(ScoreItem(),)))) + _FRAME_BYTES
    sizes = [(1, _item_bytes(item, codec), _item_pixels(item, images or {})) for item in request.items]
    most = (limits.max_items, limits.max_body_bytes - envelope, limits.max_request_pixels)
    pieces = list(split(request.items, sizes, most))
    if len(pieces) < 2:
        return [request]
    return [replace(request, items=items, request_id=f"{request.request_id}/{i}") for i, items in enumerate(pieces)]


def split(things: Sequence[T], sizes: Sequence[Sequence[int]], most: Sequence[float]) -> Iterator[tuple[T, ...]]:
    """Consecutive runs of things whose sizes, of each kind, add up to `most` or less; a larger thing is a run of its
    own."""
    run: list[T] = []
    totals = [0] * len(most)
    for thing, size in zip(things, sizes, strict=True):
        if run and any(total + one > limit for total, one, limit in zip(totals, size, most, strict=True)):
            yield tuple(run)
            run, totals = [], [0] * len(most)
        run.append(thing)
        totals = [total + one for total, one in zip(totals, size, strict=True)]
    if run:
        yield tuple(run)


def content_bytes(image: ImageData) -> int:
    """Bytes of an image on the wire, in a format that carries bytes as they are."""
    return _FRAME_BYTES + (len(image) if isinstance(image, bytes) else image.nbytes)


def _item_bytes(item: ScoreItem, codec: Codec) -> int:
    bare = replace(item, image=_hollow(item.image), references=tuple(map(_hollow, item.references)))
    return sum(map(content_bytes, item.images())) + len(codec.encode_request(ScoreRequest((bare,))))


def _item_pixels(item: ScoreItem, images: Mapping[str, ImageData]) -> int:
    """Never less than what the service counts, which counts references that items have in common once."""
    named = (images.get(one.digest) for one in (*item.references, item.image) if isinstance(one, ImageRef))
    return sum(pixel_count(one) for one in (*item.images(), *named) if one is not None)


def _hollow(image: P) -> P | bytes:
    return b"" if isinstance(image, bytes | np.ndarray) else image
