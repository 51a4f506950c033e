"""The protocol without I/O: records -> a call; a response -> records, or the error that it carries.

A transport sends a `Call` and returns a `RawResponse`. `synod.client.flows` decides what to call and when.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from synod.codec import CODECS, Codec
from synod.contracts import (
    Part,
    PutImagesRequest,
    RequestError,
    Rewards,
    ScoredItem,
    ScoreRequest,
    ScoreResponse,
)
from synod.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    PermissionDenied,
    SynodError,
    Unauthenticated,
    Unavailable,
)
from synod.reader import quote

T = TypeVar("T")
Operation = Literal["score", "stream", "put_images", "scorers", "ready"]
CHECK_URL: Final = "check that the URL is a Synod service's"
GRACE_S: Final = 5.0  # added to `timeout_ms`, so that the service's own DeadlineExceeded can arrive
_BY_STATUS: Final[Mapping[int, type[SynodError]]] = {  # for responses of other servers, such as a proxy
    401: Unauthenticated,
    403: PermissionDenied,
    407: PermissionDenied,
    408: DeadlineExceeded,
    413: PayloadTooLarge,
    429: Overloaded,
    504: DeadlineExceeded,
}


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the service.

    `timeout_s` bounds the call, or the wait for each part of a stream over HTTP. `body` is in the transport's codec.
    """

    operation: Operation
    timeout_s: float
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class RawResponse:
    """A response before decoding. Over gRPC `status` is the equivalent HTTP status.

    `retry_after_s` is the header's. `proxy` is the setting of the proxy in use, if any: an unreadable response may be
    the proxy's.
    """

    status: int
    content_type: str
    body: bytes
    retry_after_s: float | None = None
    proxy: str | None = None


def score_call(request: ScoreRequest, codec: Codec) -> Call:
    """Encode a request, which has a `timeout_ms`. Raises InvalidRequest for one that cannot be sent."""
    return Call("score", _timeout_s(request), codec.encode_request(request))


def stream_call(request: ScoreRequest, codec: Codec) -> Call:
    """Encode a request for a streamed response. Raises InvalidRequest for one that cannot be sent."""
    return Call("stream", _timeout_s(request), codec.encode_stream_request(request))


def put_call(request: PutImagesRequest, codec: Codec, timeout_s: float) -> Call:
    """Encode an upload of images. Raises InvalidRequest for an image that cannot be sent."""
    return Call("put_images", timeout_s, codec.encode_put(request))


def read_score(raw: RawResponse, request: ScoreRequest) -> ScoreResponse:
    """Decode the response to `request`. Raises the SynodError that it carries, or one if it is invalid."""
    response = _read(raw, Codec.decode_response)
    if len(response.results) != len(request.items) or response.request_id != request.request_id:
        raise SynodError(
            f"the response holds {len(response.results)} results for request {quote(response.request_id)}, but "
            f"{len(request.items)} items were sent as {quote(request.request_id)}; check for a proxy that rewrites or "
            "caches responses"
        )
    absent = {name for result in response.results for name in request.scorers if name not in result.scores}
    if absent:
        raise SynodError(f"the response lacks the outcome of {', '.join(sorted(absent))} for some item; {CHECK_URL}")
    return response


def read_catalogue(raw: RawResponse) -> dict[str, Any]:
    """Decode what the service serves, free-form: `scorers`, `ensembles`, `limits`. Raises SynodError."""
    catalogue = _read(raw, Codec.decode_object)
    scorers = catalogue.get("scorers")
    if not isinstance(scorers, list) or not all(isinstance(one, dict) and "name" in one for one in scorers):
        raise SynodError(f"the response has no list of scorers; {CHECK_URL}")
    return catalogue


def read_digests(raw: RawResponse, expected: tuple[str, ...]) -> tuple[str, ...]:
    """Decode the digests of uploaded images, which must equal `expected`. Raises SynodError."""
    digests = _read(raw, Codec.decode_digests).digests
    if digests != expected:
        raise SynodError(
            "the service computes other digests of the uploaded images than this client; install the same version of "
            "Synod on both sides"
        )
    return digests


def describe_unready(raw: RawResponse) -> str | None:
    """Return what the service still waits for; None when it is ready."""
    if raw.status == 200:
        return None
    try:
        scorers = json.loads(raw.body)["scorers"]
        waiting = [f"{name} ({one['reason']})" for name, one in scorers.items() if not one["ready"]]
    except (ValueError, TypeError, KeyError, AttributeError):
        return _quote(raw)
    return ", ".join(waiting) or _quote(raw)


def error_of_response(raw: RawResponse) -> SynodError:
    """Return the error that a response carries, or else the one that its status stands for."""
    codec = _codec(raw)
    error: SynodError | None = None
    with contextlib.suppress(InvalidRequest):  # another server's body
        error = None if codec is None else codec.decode_error(raw.body)
    error = error or error_type_of_status(raw.status)(f"{_quote(raw)}; {_hint(raw)}")
    if error.retry_after_s is None:
        error.retry_after_s = raw.retry_after_s
    return error


@dataclass(slots=True)
class PartReader:
    """Read the response to one request part by part: each pair of item and scorer once, the rewards last."""

    request: ScoreRequest
    codec: Codec
    _seen: set[tuple[int, str]] = field(default_factory=set)
    _ended: bool = False

    @property
    def started(self) -> bool:
        """Whether a part has been read."""
        return self._ended or bool(self._seen)

    def read(self, data: bytes) -> Part:
        """Decode and check the next part. Raises the error that it carries; SynodError for an invalid part."""
        try:
            part = self.codec.decode_part(data)
        except InvalidRequest as error:
            raise SynodError(f"a part of the response cannot be read: {error}; {CHECK_URL}") from None
        if isinstance(part, RequestError):
            raise part.error
        if part.request_id != self.request.request_id:
            raise SynodError(
                f"a part belongs to request {quote(part.request_id)}, but {quote(self.request.request_id)} was sent"
            )
        if self._ended:
            raise SynodError(f"a part of request {quote(part.request_id)} came after its last")
        if isinstance(part, ScoredItem):
            self._check(part)
        else:
            self._end(part)
        return part

    def close(self) -> None:
        """Check that the response is complete.

        Raises Unavailable when it is not: retry with the same `request_id`.
        """
        if not self._ended:
            raise Unavailable(
                f"the response to request {quote(self.request.request_id)} ended after {len(self._seen)} parts, before "
                "its last; send the request again with the same request_id"
            )

    def _check(self, part: ScoredItem) -> None:
        pair, count = (part.index, part.scorer), len(self.request.items)
        if part.index >= count:
            raise SynodError(f"a part is of item {part.index}, but only {count} items were sent")
        if pair in self._seen:
            raise SynodError(f"the outcome of {quote(part.scorer)} for item {part.index} came twice")
        self._seen.add(pair)

    def _end(self, part: Rewards) -> None:
        count = len(self.request.items)
        absent = {(i, name) for i in range(count) for name in self.request.scorers} - self._seen
        if absent or len(part.rewards) != count:
            raise SynodError(
                f"the response ended with {len(part.rewards)} of {count} rewards and {len(absent)} outcomes missing"
            )
        self._ended = True


def _timeout_s(request: ScoreRequest) -> float:
    assert request.timeout_ms is not None
    return request.timeout_ms / 1000 + GRACE_S


def error_type_of_status(status: int) -> type[SynodError]:
    """Return the error type for a status that another server sent.

    A proxy answers 500, for example, for a gateway that died.
    """
    return _BY_STATUS.get(status, Unavailable if status >= 500 else SynodError)


def _hint(raw: RawResponse) -> str:
    """Say where a response that carries no error of the service may come from."""
    if raw.proxy is None:
        return CHECK_URL
    return (
        f"it may come from the proxy {raw.proxy} rather than from a Synod service: check the proxy, "
        "or add the service's host to no_proxy"
    )


def _codec(raw: RawResponse) -> Codec | None:
    return CODECS.get(raw.content_type.partition(";")[0].strip().lower())


def _read(raw: RawResponse, decode: Callable[[Codec, bytes], T]) -> T:
    if raw.status != 200:
        raise error_of_response(raw)
    codec = _codec(raw)
    if codec is None:
        raise SynodError(f"{_quote(raw)}; {_hint(raw)}")
    try:
        return decode(codec, raw.body)
    except InvalidRequest as error:
        raise SynodError(f"the response cannot be read: {error}; {CHECK_URL}") from None


def _quote(raw: RawResponse) -> str:
    return f"HTTP {raw.status} of type {quote(raw.content_type)}: {quote(raw.body, 120)[1:]}"
