"""Define Synod's errors, with the HTTP status and the gRPC status code of each.

SynodError
├── InvalidRequest        the whole request is unreadable or invalid; a retry cannot help
│   ├── UnknownScorer     the service does not have this scorer or ensemble
│   ├── PayloadTooLarge   body, item count or text over a limit
│   ├── UnsupportedMedia  a content type without a codec
│   ├── Unauthenticated   no token, or an unknown one
│   └── PermissionDenied  the token has no permission for this
├── UnknownImage          the service does not store this digest: upload it, then ask again (retryable)
├── InvalidItem           one item is unusable; the others are scored
│   ├── BadImage          bytes that do not decode to an image
│   ├── ImageTooLarge     pixels or bytes over a limit (refused before decoding)
│   ├── MissingInput      the scorer needs a field that the item lacks
│   └── NoReferenceFace   a reference image without a face
├── ScorerFailed          the scorer raised, or broke the batch contract, for this item
│   ├── NonFinite         the scorer produced NaN or an infinity
│   └── JudgeBudget       the scorer's judge has spent its budget of tokens or dollars
└── Unavailable           try again (retryable)
    ├── Overloaded        a queue is full
    ├── ReplicaLost       the replica died while scoring
    └── DeadlineExceeded  `timeout_ms` passed before the score was ready

`SettingsError` is separate: it is never sent, but stops a program at start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar


class SynodError(Exception):
    """The base of every error that may be sent: a stable `code`, its statuses, and whether a retry can help.

    `grpc_status` is a name of `grpc.StatusCode`. `retry_after_s` (>= 0) is set if the service knows how long to wait.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    @property
    def message(self) -> str:
        return str(self)


class InvalidRequest(SynodError):
    code, http_status, grpc_status = "invalid_request", 400, "INVALID_ARGUMENT"


class UnknownScorer(InvalidRequest):
    code, http_status, grpc_status = "unknown_scorer", 404, "NOT_FOUND"


class PayloadTooLarge(InvalidRequest):
    code, http_status = "payload_too_large", 413


class UnsupportedMedia(InvalidRequest):
    code, http_status, grpc_status = "unsupported_media_type", 415, "UNIMPLEMENTED"


class Unauthenticated(InvalidRequest):
    code, http_status, grpc_status = "unauthenticated", 401, "UNAUTHENTICATED"


class PermissionDenied(InvalidRequest):
    code, http_status, grpc_status = "permission_denied", 403, "PERMISSION_DENIED"


class UnknownImage(SynodError):
    """`digests`: the images to upload before the request can be answered."""

    code, http_status, grpc_status, retryable = "unknown_image", 409, "FAILED_PRECONDITION", True

    def __init__(self, message: str = "", digests: Iterable[str] = (), *, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.digests = tuple(digests)


class InvalidItem(SynodError):
    code, http_status, grpc_status = "invalid_item", 422, "INVALID_ARGUMENT"


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


class JudgeBudget(ScorerFailed):
    code = "judge_budget"


class Unavailable(SynodError):
    code, http_status, grpc_status, retryable = "unavailable", 503, "UNAVAILABLE", True


class Overloaded(Unavailable):
    code, http_status, grpc_status = "overloaded", 429, "RESOURCE_EXHAUSTED"


class ReplicaLost(Unavailable):
    code = "replica_lost"


class DeadlineExceeded(Unavailable):
    code, http_status, grpc_status = "deadline_exceeded", 504, "DEADLINE_EXCEEDED"


class SettingsError(ValueError):
    """A settings file is invalid; the message names the key, the value and the remedy."""


def error_of(
    code: str, message: str, *, retryable: bool = False, digests: Iterable[str] = (), retry_after_s: float | None = None
) -> SynodError:
    """Return the error with this code. The message includes a code that this version does not know."""
    kind = _BY_CODE.get(code)
    if kind is UnknownImage:
        return UnknownImage(message, digests, retry_after_s=retry_after_s)
    if kind is not None:
        return kind(message, retry_after_s=retry_after_s)
    return (Unavailable if retryable else SynodError)(f"{code}: {message}", retry_after_s=retry_after_s)


def _with_subclasses(kind: type[SynodError]) -> Iterator[type[SynodError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _with_subclasses(child)


_BY_CODE = {kind.code: kind for kind in _with_subclasses(SynodError)}
CODES = frozenset(_BY_CODE)
SERVER_ERROR_CODES = frozenset(code for code, kind in _BY_CODE.items() if kind.http_status >= 500)
