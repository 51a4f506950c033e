"""The one error tree, and its one table to HTTP status.

SynodError
├── InvalidRequest        the whole request cannot be read or means nothing
│   ├── UnknownScorer     a scorer or ensemble that this plane does not serve
│   ├── PayloadTooLarge   body, item count or text over a limit
│   └── UnsupportedMedia  a content type without a codec
├── InvalidItem           one item is unusable; its neighbours are scored
│   ├── BadImage          bytes that do not decode to a picture
│   ├── ImageTooLarge     pixels or bytes over a limit (refused before decoding)
│   ├── MissingInput      the scorer needs a field that the item lacks
│   └── NoReferenceFace   a reference picture without a face
├── ScorerFailed          the scorer raised, or broke the batch law, for this item
│   └── NonFinite         the scorer produced NaN or an infinity
└── Unavailable           try again (retryable)
    ├── Overloaded        a queue is full
    ├── ReplicaLost       the replica died while scoring
    └── DeadlineExceeded  `timeout_ms` passed first

`SettingsError` stands apart: it never travels, it stops a program at start.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class SynodError(Exception):
    """Base of every error that may travel: a stable `code`, a status, and whether a retry can help."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    @property
    def message(self) -> str:
        return str(self)


class InvalidRequest(SynodError):
    code, http_status = "invalid_request", 400


class UnknownScorer(InvalidRequest):
    code, http_status = "unknown_scorer", 404


class PayloadTooLarge(InvalidRequest):
    code, http_status = "payload_too_large", 413


class UnsupportedMedia(InvalidRequest):
    code, http_status = "unsupported_media_type", 415


class InvalidItem(SynodError):
    code, http_status = "invalid_item", 422


class BadImage(InvalidItem):
    code = "bad_image"


class ImageTooLarge(InvalidItem):
    code = "image_too_large"


class MissingInput(InvalidItem):
    code = "missing_input"


class NoReferenceFace(InvalidItem):
    code = "no_reference_face"


class ScorerFailed(SynodError):
    code = "scorer_failed"


class NonFinite(ScorerFailed):
    code = "non_finite"


class Unavailable(SynodError):
    code, http_status, retryable = "unavailable", 503, True


class Overloaded(Unavailable):
    code, http_status = "overloaded", 429


class ReplicaLost(Unavailable):
    code = "replica_lost"


class DeadlineExceeded(Unavailable):
    code, http_status = "deadline_exceeded", 504


class SettingsError(ValueError):
    """A settings file that cannot be used: names the key, the value and the way out."""


def error_of(code: str, message: str, *, retryable: bool = False) -> SynodError:
    """The error that a code on the wire stands for. A code unknown to this version stays in the message."""
    kind = _BY_CODE.get(code)
    if kind is not None:
        return kind(message)
    return (Unavailable if retryable else SynodError)(f"{code}: {message}")


def _family(kind: type[SynodError]) -> Iterator[type[SynodError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


_BY_CODE = {kind.code: kind for kind in _family(SynodError)}
