"""Records and errors that the gateway speaks of and `synod` does not hold yet, under the names they have there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import numpy as np

from synod import errors, tree
from synod.codec import Codec
from synod.contracts import ItemResult, Outcome, Pixels, ScoreResponse
from synod.reader import Node, each

Content = bytes | Pixels  # a picture that is here: encoded, or uint8 [H W 3]
PREFIX: Final = "blake2b-256:"


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A picture that the plane keeps, by the digest of what was put: "blake2b-256:" and 64 hex digits."""

    digest: str


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """A part of a streamed answer: the outcome of item `index` (0 .. items - 1) by one scorer."""

    request_id: str
    index: int
    scorer: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Rewards:
    """The last part of a streamed answer: one reward per item, in the order of the request; None where unasked."""

    request_id: str
    rewards: tuple[Outcome | None, ...]


@dataclass(frozen=True, slots=True)
class RequestError:
    """The last part of a streamed answer to a request that failed as a whole; parts before it still hold."""

    request_id: str
    error: errors.SynodError


Part = ScoredItem | Rewards | RequestError


class Overloaded(errors.Overloaded):
    """`retry_after_s` (>= 0): when there should be room."""

    def __init__(self, message: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnknownImage(errors.SynodError):
    """`digests`: all that must be uploaded before the request can be answered."""

    code, http_status, retryable = "unknown_image", 409, True

    def __init__(self, message: str = "", digests: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.digests = tuple(digests)


class Unauthenticated(errors.InvalidRequest):
    code, http_status = "unauthenticated", 401


class PermissionDenied(errors.InvalidRequest):
    code, http_status = "permission_denied", 403


def digest_of(picture: Content) -> str:
    """BLAKE2b-256 over "encoded\\n" and the file, or over "raw H W 3\\n" and the pixels of uint8 [H W 3]."""
    if isinstance(picture, bytes):
        header, data = "encoded\n", memoryview(picture)
    else:
        header = "raw {} {} {}\n".format(*picture.shape)
        data = np.ascontiguousarray(picture).reshape(-1).data
    found = blake2b(header.encode(), digest_size=32)
    found.update(data)
    return PREFIX + found.hexdigest()


def part_tree(part: Part) -> dict[str, Any]:
    """{request_id, scored: {index, scorer, outcome}}, {request_id, rewards: [..]} or {request_id, error}."""
    named = {"request_id": part.request_id}
    if isinstance(part, ScoredItem):
        return named | {"scored": {"index": part.index, "scorer": part.scorer, "outcome": _outcome_tree(part.outcome)}}
    if isinstance(part, Rewards):
        return named | {"rewards": [None if one is None else _outcome_tree(one) for one in part.rewards]}
    return named | tree.error_tree(part.error)


def read_put(codec: Codec, body: bytes) -> tuple[Content, ...]:
    """The pictures of {images: [picture..]}. Raises InvalidRequest."""
    try:
        images = Node(codec.loads(body)).fields("images").need("images", each(lambda node: node.value))
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise errors.InvalidRequest(f"the body is not {codec.content_type}: {type(error).__name__}") from None
    wrapped = Node({"items": [{"image": image} for image in images]})
    return tuple(item.image for item in tree.read_request(wrapped, codec.read_bytes).items if item.image is not None)


def _outcome_tree(outcome: Outcome) -> Any:
    alone = ScoreResponse((ItemResult({"": outcome}),), "")
    return tree.response_tree(alone)["results"][0]["scores"][""]
