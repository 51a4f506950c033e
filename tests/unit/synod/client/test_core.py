"""The protocol without I/O."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from synod.client.core import (
    GRACE_S,
    Answer,
    PartReader,
    error_in,
    joined,
    pending,
    read_catalogue,
    read_digests,
    read_score,
    score_call,
    stream_call,
)
from synod.codec import CODECS, Codec
from synod.codec import MSGPACK as WIRE
from synod.contracts import (
    ItemResult,
    Part,
    PutImagesResponse,
    RequestError,
    Rewards,
    Score,
    ScoredItem,
    ScoreFailure,
    ScoreItem,
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
    UnknownScorer,
)

REQUEST = ScoreRequest((ScoreItem(prompt="a"), ScoreItem(prompt="b")), ("ber",), request_id="r")
RESPONSE = ScoreResponse((ItemResult({"ber": Score(0.5)}), ItemResult({"ber": ScoreFailure("bad_image", "m")})), "r")


def ok(response: ScoreResponse) -> Answer:
    return Answer(200, WIRE.content_type, WIRE.encode_response(response))


@pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
def test_a_call_carries_the_request_and_waits_a_little_longer_than_the_service(codec: Codec) -> None:
    sent = replace(REQUEST, timeout_ms=2500)
    call = score_call(sent, codec)
    assert (call.operation, call.timeout_s) == ("score", 2.5 + GRACE_S)
    assert codec.decode_request(call.body) == sent
    streamed = stream_call(sent, codec)
    assert (streamed.operation, codec.decode_stream_request(streamed.body)) == ("stream", sent)


def test_a_request_that_cannot_be_sent_is_refused_here() -> None:
    with pytest.raises(InvalidRequest, match=r"items\[0\]\.image"):
        score_call(ScoreRequest((ScoreItem(np.zeros((3, 8, 8), np.uint8)),), timeout_ms=1), WIRE)


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
        (500, Unavailable),
        (502, Unavailable),
        (503, Unavailable),
        (504, DeadlineExceeded),
        (408, DeadlineExceeded),
        (413, PayloadTooLarge),
        (429, Overloaded),
        (401, Unauthenticated),
        (403, PermissionDenied),
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


def test_a_catalogue_is_read_or_refused() -> None:
    listed = [{"name": "ber", "low": -1.0}]
    body = {"scorers": listed, "x": 1}
    assert read_catalogue(Answer(200, "application/json", json.dumps(body).encode())) == body
    bodies: tuple[dict[str, object], ...] = ({}, {"scorers": {}}, {"scorers": [1]}, {"scorers": [{}]})
    for body in bodies:
        with pytest.raises(SynodError, match="without a list of scorers"):
            read_catalogue(Answer(200, "application/json", json.dumps(body).encode()))


def test_digests_must_be_those_due() -> None:
    digests = ("blake2b-256:" + "0a" * 32,)
    answer = Answer(200, WIRE.content_type, WIRE.encode_digests(PutImagesResponse(digests)))
    assert read_digests(answer, digests) == digests
    for due in ((), digests * 2, ("blake2b-256:" + "0b" * 32,)):
        with pytest.raises(SynodError, match="the service names images by other digests"):
            read_digests(answer, due)


def test_the_waiting_time_of_the_body_wins_over_the_headers() -> None:
    told = WIRE.encode_error(Overloaded("full", retry_after_s=2.5))
    silent = WIRE.encode_error(Overloaded("full"))
    assert error_in(Answer(429, WIRE.content_type, told, 7.0)).retry_after_s == 2.5
    assert error_in(Answer(429, WIRE.content_type, silent, 7.0)).retry_after_s == 7.0
    assert error_in(Answer(429, "text/html", b"busy", 7.0)).retry_after_s == 7.0
    assert error_in(Answer(429, WIRE.content_type, silent)).retry_after_s is None


# --- answers in parts ---

PARTS: list[Part] = [
    ScoredItem("r", 1, "ber", Score(0.5)),
    ScoredItem("r", 0, "ber", ScoreFailure("bad_image", "m")),
    Rewards("r", (None, Score(1.0))),
]


def read_all(parts: list[Part]) -> list[Part]:
    reader = PartReader(REQUEST, WIRE)
    read = [reader.read(WIRE.encode_part(part)) for part in parts]
    reader.close()
    return read


def test_parts_join_to_the_response() -> None:
    assert read_all(PARTS) == PARTS
    bad = ScoreFailure("bad_image", "m")
    expected = ScoreResponse((ItemResult({"ber": bad}, None), ItemResult({"ber": Score(0.5)}, Score(1.0))), "r")
    assert joined(PARTS, 2) == expected


@pytest.mark.parametrize(
    ("parts", "kind", "message"),
    [
        (PARTS[:2], Unavailable, r"request 'r' was cut off after 2 parts; ask again under the same request_id$"),
        ([], Unavailable, "cut off after 0 parts"),
        ([PARTS[0], PARTS[0]], SynodError, "item 1's 'ber' came twice"),
        ([ScoredItem("r", 2, "ber", Score(0.5))], SynodError, "or there is no such item"),
        ([ScoredItem("s", 0, "ber", Score(0.5))], SynodError, "a part of request 's' came where none was due"),
        ([*PARTS, PARTS[0]], SynodError, "a part of request 'r' came where none was due"),
        ([PARTS[0], PARTS[2]], SynodError, "the answer ended with 1 outcomes missing"),
        ([*PARTS[:2], Rewards("r", ())], SynodError, "the answer ended with 0 outcomes missing"),
        ([PARTS[0], RequestError("r", Overloaded("full"))], Overloaded, "^full$"),
        ([RequestError("", UnknownScorer("no such"))], UnknownScorer, "^no such$"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(parts: list[Part], kind: type[SynodError], message: str) -> None:
    with pytest.raises(SynodError, match=message) as raised:
        read_all(parts)
    assert type(raised.value) is kind


def test_a_part_that_cannot_be_read_is_the_services_fault() -> None:
    with pytest.raises(SynodError, match="a part of the answer cannot be read") as raised:
        PartReader(REQUEST, CODECS["application/json"]).read(b"<html>")
    assert type(raised.value) is SynodError


def test_what_a_service_waits_for() -> None:
    scorers = {"ber": {"ready": False, "reason": "loading"}, "der": {"ready": True, "reason": ""}}
    body = json.dumps({"ready": False, "scorers": scorers}).encode()
    assert pending(Answer(200, "application/json", body)) is None
    assert pending(Answer(503, "application/json", body)) == "ber (loading)"
    for odd in (b"", b"[]", b"{}", b'{"scorers": [1]}', b'{"scorers": {"ber": {}}}', b'{"scorers": {}}', b"\xff"):
        assert (pending(Answer(503, "text/plain", odd)) or "").startswith("HTTP 503 of type 'text/plain'")
