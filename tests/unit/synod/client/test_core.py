"""The protocol without I/O."""

from __future__ import annotations

import json

import numpy as np
import pytest

from synod.client.core import GRACE_S, WIRE, Answer, pending, read_score, read_scorers, score_call
from synod.codec import CODECS
from synod.contracts import ItemResult, Score, ScoreFailure, ScoreItem, ScoreRequest, ScoreResponse
from synod.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    SynodError,
    Unavailable,
    UnknownScorer,
)

REQUEST = ScoreRequest((ScoreItem(prompt="a"), ScoreItem(prompt="b")), ("ber",), request_id="r")
RESPONSE = ScoreResponse((ItemResult({"ber": Score(0.5)}), ItemResult({"ber": ScoreFailure("bad_image", "m")})), "r")


def ok(response: ScoreResponse) -> Answer:
    return Answer(200, WIRE.content_type, WIRE.encode_response(response))


def test_a_request_is_sent_with_a_deadline_and_an_id() -> None:
    call, sent = score_call(ScoreRequest((ScoreItem(),)), 2.5)
    decoded = WIRE.decode_request(call.body)
    assert decoded == sent
    assert (sent.timeout_ms, call.timeout_s) == (2500, 2.5 + GRACE_S)
    assert sent.request_id
    assert sent.request_id != score_call(ScoreRequest((ScoreItem(),)), 2.5)[1].request_id
    assert (call.method, call.path, call.headers["content-type"]) == ("POST", "/v1/score", "application/msgpack")


def test_the_requests_own_deadline_and_id_win() -> None:
    call, sent = score_call(ScoreRequest((ScoreItem(),), timeout_ms=100, request_id="mine"), 60)
    assert (sent.timeout_ms, sent.request_id, call.timeout_s) == (100, "mine", 0.1 + GRACE_S)


def test_a_request_that_cannot_be_sent_is_refused_here() -> None:
    with pytest.raises(InvalidRequest, match=r"items\[0\]\.image"):
        score_call(ScoreRequest((ScoreItem(np.zeros((3, 8, 8), np.uint8)),)), 1)


@pytest.mark.parametrize("content_type", CODECS)
def test_an_answer_is_read_in_the_type_it_comes_in(content_type: str) -> None:
    body = CODECS[content_type].encode_response(RESPONSE)
    assert read_score(Answer(200, f"{content_type}; x=y", body), REQUEST) == RESPONSE


@pytest.mark.parametrize("kind", [UnknownScorer, Overloaded, DeadlineExceeded, PayloadTooLarge, InvalidRequest])
@pytest.mark.parametrize("content_type", CODECS)
def test_an_error_answer_raises_its_class(content_type: str, kind: type[SynodError]) -> None:
    body = CODECS[content_type].encode_error(kind("why"))
    with pytest.raises(SynodError, match=r"^why$") as raised:
        read_score(Answer(kind.http_status, content_type, body), REQUEST)
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (502, Unavailable),
        (503, Unavailable),
        (504, DeadlineExceeded),
        (408, DeadlineExceeded),
        (413, PayloadTooLarge),
        (429, Overloaded),
        (404, SynodError),
        (302, SynodError),
        (201, SynodError),
    ],
)
@pytest.mark.parametrize("content_type", ["text/html", "application/json", ""])
def test_another_servers_error_is_read_by_its_status(status: int, kind: type[SynodError], content_type: str) -> None:
    with pytest.raises(SynodError, match=f"^HTTP {status} of type '{content_type}': '<h1>bad</h1>'") as raised:
        read_score(Answer(status, content_type, b"<h1>bad</h1>"), REQUEST)
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (ok(ScoreResponse(RESPONSE.results[:1], "r")), "1 results for request 'r' came back where 2 for 'r' were due"),
        (ok(ScoreResponse(RESPONSE.results, "s")), "2 results for request 's' came back where 2 for 'r'"),
        (ok(ScoreResponse((ItemResult({}), ItemResult({})), "r")), "no outcome of ber for some item"),
        (Answer(200, "application/msgpack", b"\x80"), "the answer cannot be read: results: missing; is this"),
        (Answer(200, "text/html", b"<html>"), "^HTTP 200 of type 'text/html': '<html>'; is this the address"),
    ],
)
def test_an_answer_that_is_none_is_an_error(answer: Answer, message: str) -> None:
    with pytest.raises(SynodError, match=message) as raised:
        read_score(answer, REQUEST)
    assert type(raised.value) is SynodError


def test_scorers_are_read_or_refused() -> None:
    listed = [{"name": "ber", "low": -1.0}]
    assert read_scorers(Answer(200, "application/json", json.dumps({"scorers": listed, "x": 1}).encode())) == listed
    bodies: tuple[dict[str, object], ...] = ({}, {"scorers": {}}, {"scorers": [1]}, {"scorers": [{}]})
    for body in bodies:
        with pytest.raises(SynodError, match="without a list of scorers"):
            read_scorers(Answer(200, "application/json", json.dumps(body).encode()))


def test_what_a_plane_waits_for() -> None:
    scorers = {"ber": {"ready": False, "reason": "loading"}, "der": {"ready": True, "reason": ""}}
    body = json.dumps({"ready": False, "scorers": scorers}).encode()
    assert pending(Answer(200, "application/json", body)) is None
    assert pending(Answer(503, "application/json", body)) == "ber (loading)"
    for odd in (b"", b"[]", b"{}", b'{"scorers": [1]}', b'{"scorers": {"ber": {}}}', b'{"scorers": {}}', b"\xff"):
        assert (pending(Answer(503, "text/plain", odd)) or "").startswith("HTTP 503 of type 'text/plain'")
