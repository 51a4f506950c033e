"""The protocol without I/O: records -> the call to make, and the answer -> records or the error it tells of.

A transport sends what `Call` says and hands back an `Answer`; it decides nothing. `synod.client.flows` decides when.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from synod.codec import CODECS, Codec
from synod.contracts import (
    ItemResult,
    Outcome,
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
_SERVICE: Final = "is this the address of a Synod service?"
GRACE_S: Final = 5.0  # what the service's own, typed DeadlineExceeded gets on top of `timeout_ms` to arrive
_BY_STATUS: Final[Mapping[int, type[SynodError]]] = {  # for answers that are not the service's own, such as a proxy's
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
    """One call. `timeout_s` bounds the wait for its answer, or for each part; `body` is in the transport's codec."""

    operation: Operation
    timeout_s: float
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: an HTTP status, or the one that says the same; `retry_after_s` where a header told it.

    `proxy` is the setting of the proxy in between, if there is one: an answer that no service gives may be the proxy's.
    """

    status: int
    content_type: str
    body: bytes
    retry_after_s: float | None = None
    proxy: str | None = None


def score_call(sent: ScoreRequest, codec: Codec) -> Call:
    """The call of a request with a `timeout_ms`. Raises InvalidRequest for one that cannot be sent."""
    return Call("score", _patience_s(sent), codec.encode_request(sent))


def stream_call(sent: ScoreRequest, codec: Codec) -> Call:
    """The same, to be answered in parts."""
    return Call("stream", _patience_s(sent), codec.encode_stream_request(sent))


def put_call(request: PutImagesRequest, codec: Codec, timeout_s: float) -> Call:
    """Raises InvalidRequest for an image that cannot be sent."""
    return Call("put_images", timeout_s, codec.encode_put(request))


def read_score(answer: Answer, sent: ScoreRequest) -> ScoreResponse:
    """The response to `sent`. Raises the SynodError that the answer tells of, or is."""
    response = _read(answer, Codec.decode_response)
    if len(response.results) != len(sent.items) or response.request_id != sent.request_id:
        raise SynodError(
            f"{len(response.results)} results for request {quote(response.request_id)} came back where "
            f"{len(sent.items)} for {quote(sent.request_id)} were due; is something between rewriting answers?"
        )
    absent = {name for result in response.results for name in sent.scorers if name not in result.scores}
    if absent:
        raise SynodError(f"the answer holds no outcome of {', '.join(sorted(absent))} for some item")
    return response


def read_catalogue(answer: Answer) -> dict[str, Any]:
    """What the service serves, free-form: `scorers`, `ensembles`, `limits`. Raises SynodError."""
    catalogue = _read(answer, Codec.decode_object)
    scorers = catalogue.get("scorers")
    if not isinstance(scorers, list) or not all(isinstance(one, dict) and "name" in one for one in scorers):
        raise SynodError(f"the service answered without a list of scorers; {_SERVICE}")
    return catalogue


def read_digests(answer: Answer, due: tuple[str, ...]) -> tuple[str, ...]:
    """The digests of images put, which must be those `due`. Raises SynodError."""
    digests = _read(answer, Codec.decode_digests).digests
    if digests != due:
        raise SynodError("the service names images by other digests than this client; use one version of Synod")
    return digests


def pending(answer: Answer) -> str | None:
    """What the service still waits for; None when it is ready."""
    if answer.status == 200:
        return None
    try:
        scorers = json.loads(answer.body)["scorers"]
        waiting = [f"{name} ({one['reason']})" for name, one in scorers.items() if not one["ready"]]
    except (ValueError, TypeError, KeyError, AttributeError):
        return _quote(answer)
    return ", ".join(waiting) or _quote(answer)


def error_in(answer: Answer) -> SynodError:
    """The error of an answer that is one: the service's own, or what its status says."""
    codec = _codec(answer)
    error: SynodError | None = None
    with contextlib.suppress(InvalidRequest):  # the body of some other server
        error = None if codec is None else codec.decode_error(answer.body)
    error = error or kind_of(answer.status)(f"{_quote(answer)}; {_hint(answer)}")
    if error.retry_after_s is None:
        error.retry_after_s = answer.retry_after_s
    return error


@dataclass(slots=True)
class PartReader:
    """Reads one request's answer part by part: every pair of item and scorer once, the rewards last."""

    sent: ScoreRequest
    codec: Codec
    _seen: set[tuple[int, str]] = field(default_factory=set)
    _ended: bool = False

    def read(self, data: bytes) -> Part:
        """The next part. Raises the error that the service tells of; SynodError for a part that cannot be."""
        try:
            part = self.codec.decode_part(data)
        except InvalidRequest as error:
            raise SynodError(f"a part of the answer cannot be read: {error}; {_SERVICE}") from None
        if isinstance(part, RequestError):
            raise part.error
        if part.request_id != self.sent.request_id or self._ended:
            raise SynodError(f"a part of request {quote(part.request_id)} came where none was due")
        if isinstance(part, ScoredItem):
            self._check(part)
        else:
            self._end(part)
        return part

    def close(self) -> None:
        """The stream has ended. Raises Unavailable when the answer is not whole: ask again, under the same id."""
        if not self._ended:
            raise Unavailable(
                f"the answer to request {quote(self.sent.request_id)} was cut off after {len(self._seen)} parts; "
                "ask again under the same request_id"
            )

    def _check(self, part: ScoredItem) -> None:
        pair = (part.index, part.scorer)
        if part.index >= len(self.sent.items) or pair in self._seen:
            raise SynodError(f"item {part.index}'s {quote(part.scorer)} came twice, or there is no such item")
        self._seen.add(pair)

    def _end(self, part: Rewards) -> None:
        absent = {(i, name) for i in range(len(self.sent.items)) for name in self.sent.scorers} - self._seen
        if absent or len(part.rewards) != len(self.sent.items):
            raise SynodError(f"the answer ended with {len(absent)} outcomes missing")
        self._ended = True


def joined(parts: Iterable[Part], items: int) -> ScoreResponse:
    """The response that parts of one whole answer to `items` items make up."""
    scores: list[dict[str, Outcome]] = [{} for _ in range(items)]
    rewards: tuple[Outcome | None, ...] = (None,) * items
    request_id = ""
    for part in parts:
        request_id = part.request_id
        if isinstance(part, ScoredItem):
            scores[part.index][part.scorer] = part.outcome
        elif isinstance(part, Rewards):
            rewards = part.rewards
    return ScoreResponse(tuple(map(ItemResult, scores, rewards)), request_id)


def _patience_s(sent: ScoreRequest) -> float:
    assert sent.timeout_ms is not None
    return sent.timeout_ms / 1000 + GRACE_S


def kind_of(status: int) -> type[SynodError]:
    """Of an answer that is not the service's own. Any other 5xx is the way's: a proxy's 500 for a gateway that died."""
    return _BY_STATUS.get(status, Unavailable if status >= 500 else SynodError)


def _hint(answer: Answer) -> str:
    """Where an answer that is not the service's own may come from."""
    if answer.proxy is None:
        return _SERVICE
    return (
        f"it may come from the proxy {answer.proxy} rather than from a Synod service: check the proxy, "
        "or add the service's host to no_proxy"
    )


def _codec(answer: Answer) -> Codec | None:
    return CODECS.get(answer.content_type.partition(";")[0].strip().lower())


def _read(answer: Answer, decode: Callable[[Codec, bytes], T]) -> T:
    if answer.status != 200:
        raise error_in(answer)
    codec = _codec(answer)
    if codec is None:
        raise SynodError(f"{_quote(answer)}; {_hint(answer)}")
    try:
        return decode(codec, answer.body)
    except InvalidRequest as error:
        raise SynodError(f"the answer cannot be read: {error}; {_SERVICE}") from None


def _quote(answer: Answer) -> str:
    return f"HTTP {answer.status} of type {quote(answer.content_type)}: {quote(answer.body, 120)[1:]}"
