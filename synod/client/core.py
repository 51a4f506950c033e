"""The protocol without I/O: records -> the call to make, and the answer -> records or the error it tells of.

A transport (sync, async) sends what `Call` says and hands back an `Answer`; it decides nothing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from synod.codec import CODECS, Codec
from synod.contracts import ScoreRequest, ScoreResponse
from synod.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    SynodError,
    Unavailable,
)
from synod.reader import show

T = TypeVar("T")
_PLANE: Final = "is this the address of a Synod plane?"
WIRE: Final = CODECS["application/msgpack"]
GRACE_S: Final = 5.0  # what the plane's own, typed DeadlineExceeded gets on top of `timeout_ms` to arrive
_BY_STATUS: Final[Mapping[int, type[SynodError]]] = {  # for answers that are not the plane's own, such as a proxy's
    408: DeadlineExceeded,
    413: PayloadTooLarge,
    429: Overloaded,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP call. `timeout_s` bounds the wait for its answer."""

    method: str
    path: str
    timeout_s: float
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    content_type: str
    body: bytes


def score_call(request: ScoreRequest, timeout_s: float) -> tuple[Call, ScoreRequest]:
    """The call that scores `request`, and the request as sent: with an id, and with a deadline.

    Its own `timeout_ms` wins over `timeout_s`, so that the plane stops working when the caller stops waiting.
    Raises InvalidRequest for a request that cannot be sent.
    """
    timeout_ms = request.timeout_ms if request.timeout_ms is not None else max(1, round(timeout_s * 1000))
    sent = replace(request, timeout_ms=timeout_ms, request_id=request.request_id or uuid.uuid4().hex)
    headers = {"content-type": WIRE.content_type, "accept": WIRE.content_type}
    return Call("POST", "/v1/score", timeout_ms / 1000 + GRACE_S, headers, WIRE.encode_request(sent)), sent


def get_call(path: str, timeout_s: float) -> Call:
    """A call without a body; the answer is JSON."""
    return Call("GET", path, timeout_s, {"accept": "application/json"})


def read_score(answer: Answer, sent: ScoreRequest) -> ScoreResponse:
    """The response to `sent`. Raises the SynodError that the answer tells of, or is."""
    response = _read(answer, Codec.decode_response)
    if len(response.results) != len(sent.items) or response.request_id != sent.request_id:
        raise SynodError(
            f"{len(response.results)} results for request {show(response.request_id)} came back where "
            f"{len(sent.items)} for {show(sent.request_id)} were due; is something between rewriting answers?"
        )
    absent = {name for result in response.results for name in sent.scorers if name not in result.scores}
    if absent:
        raise SynodError(f"the answer holds no outcome of {', '.join(sorted(absent))} for some item")
    return response


def read_scorers(answer: Answer) -> list[dict[str, Any]]:
    """The scorers that `GET /v1/scorers` lists. Raises SynodError."""
    scorers = _read(answer, Codec.decode_plain).get("scorers")
    if not isinstance(scorers, list) or not all(isinstance(one, dict) and "name" in one for one in scorers):
        raise SynodError(f"/v1/scorers answered without a list of scorers; {_PLANE}")
    return scorers


def pending(answer: Answer) -> str | None:
    """What `GET /readyz` still waits for; None when the plane is ready."""
    if answer.status == 200:
        return None
    try:
        scorers = json.loads(answer.body)["scorers"]
        waiting = [f"{name} ({one['reason']})" for name, one in scorers.items() if not one["ready"]]
    except (ValueError, TypeError, KeyError, AttributeError):
        return _quote(answer)
    return ", ".join(waiting) or _quote(answer)


def _read(answer: Answer, decode: Callable[[Codec, bytes], T]) -> T:
    codec = CODECS.get(answer.content_type.partition(";")[0].strip().lower())
    if answer.status == 200:
        if codec is None:
            raise SynodError(f"{_quote(answer)}; {_PLANE}")
        try:
            return decode(codec, answer.body)
        except InvalidRequest as error:
            raise SynodError(f"the answer cannot be read: {error}; {_PLANE}") from None
    raise _told(codec, answer)


def _told(codec: Codec | None, answer: Answer) -> SynodError:
    """The error of an answer that is one: the plane's own, or what its status says."""
    try:
        if codec is not None:
            return codec.decode_error(answer.body)
    except InvalidRequest:
        pass  # the body of some other server
    return _BY_STATUS.get(answer.status, SynodError)(f"{_quote(answer)}; {_PLANE}")


def _quote(answer: Answer) -> str:
    return f"HTTP {answer.status} of type {show(answer.content_type)}: {show(answer.body, 120)[1:]}"
