"""The protocol without I/O."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from synod.client.core import (
    GRACE_S,
    PartReader,
    RawResponse,
    describe_unready,
    error_of_response,
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
from tests.outcomes import merge_parts

REQUEST = ScoreRequest((ScoreItem(prompt="a"), ScoreItem(prompt="b")), ("ber",), request_id="r")
RESPONSE = ScoreResponse((ItemResult({"ber": Score(0.5)}), ItemResult({"ber": ScoreFailure("bad_image", "m")})), "r")


def ok(response: ScoreResponse) -> RawResponse:
    return RawResponse(200, WIRE.content_type, WIRE.encode_response(response))


@pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
def test_call_timeout_adds_a_grace_period(codec: Codec) -> None:
    sent = replace(REQUEST, timeout_ms=2500)
    call = score_call(sent, codec)
    assert (call.operation, call.timeout_s) == ("score", 2.5 + GRACE_S)
    assert codec.decode_request(call.body) == sent
    streamed = stream_call(sent, codec)
    assert (streamed.operation, codec.decode_stream_request(streamed.body)) == ("stream", sent)


@pytest.mark.parametrize("content_type", CODECS)
def test_response_is_decoded_by_its_content_type(content_type: str) -> None:
    body = CODECS[content_type].encode_response(RESPONSE)
    assert read_score(RawResponse(200, f"{content_type}; x=y", body), REQUEST) == RESPONSE


@pytest.mark.parametrize("kind", [UnknownScorer, Overloaded, DeadlineExceeded, PayloadTooLarge, InvalidRequest])
@pytest.mark.parametrize("content_type", CODECS)
def test_error_response_raises_its_type(content_type: str, kind: type[SynodError]) -> None:
    body = CODECS[content_type].encode_error(kind("why"))
    with pytest.raises(SynodError, match=r"^why$") as raised:
        read_score(RawResponse(kind.http_status, content_type, body), REQUEST)
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
def test_foreign_error_maps_by_status(status: int, kind: type[SynodError], content_type: str) -> None:
    with pytest.raises(SynodError, match=f"^HTTP {status} of type '{content_type}': '<h1>bad</h1>'") as raised:
        read_score(RawResponse(status, content_type, b"<h1>bad</h1>"), REQUEST)
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (ok(ScoreResponse(RESPONSE.results[:1], "r")), "holds 1 results for request 'r', but 2 items were sent as 'r'"),
        (ok(ScoreResponse(RESPONSE.results, "s")), "holds 2 results for request 's', but 2 items were sent as 'r'"),
        (ok(ScoreResponse((ItemResult({}), ItemResult({})), "r")), "lacks the outcome of ber for some item"),
        (RawResponse(200, "application/msgpack", b"\x80"), "the response cannot be read: results: missing; check"),
        (RawResponse(200, "text/html", b"<html>"), "^HTTP 200 of type 'text/html': '<html>'; check that"),
    ],
)
def test_invalid_response_is_an_error(answer: RawResponse, message: str) -> None:
    with pytest.raises(SynodError, match=message) as raised:
        read_score(answer, REQUEST)
    assert type(raised.value) is SynodError


def test_catalogue_is_validated() -> None:
    listed = [{"name": "ber", "low": -1.0}]
    body = {"scorers": listed, "x": 1}
    assert read_catalogue(RawResponse(200, "application/json", json.dumps(body).encode())) == body
    bodies: tuple[dict[str, object], ...] = ({}, {"scorers": {}}, {"scorers": [1]}, {"scorers": [{}]})
    for body in bodies:
        with pytest.raises(SynodError, match="has no list of scorers"):
            read_catalogue(RawResponse(200, "application/json", json.dumps(body).encode()))


def test_unexpected_digests_are_refused() -> None:
    digests = ("blake2b-256:" + "0a" * 32,)
    answer = RawResponse(200, WIRE.content_type, WIRE.encode_digests(PutImagesResponse(digests)))
    assert read_digests(answer, digests) == digests
    for due in ((), digests * 2, ("blake2b-256:" + "0b" * 32,)):
        with pytest.raises(SynodError, match="the service computes other digests"):
            read_digests(answer, due)


def test_retry_after_in_body_wins_over_header() -> None:
    message = WIRE.encode_error(Overloaded("full", retry_after_s=2.5))
    silent = WIRE.encode_error(Overloaded("full"))
    assert error_of_response(RawResponse(429, WIRE.content_type, message, 7.0)).retry_after_s == 2.5
    assert error_of_response(RawResponse(429, WIRE.content_type, silent, 7.0)).retry_after_s == 7.0
    assert error_of_response(RawResponse(429, "text/html", b"busy", 7.0)).retry_after_s == 7.0
    assert error_of_response(RawResponse(429, WIRE.content_type, silent)).retry_after_s is None


# --- streamed responses ---

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


def test_parts_merge_to_the_response() -> None:
    assert read_all(PARTS) == PARTS
    bad = ScoreFailure("bad_image", "m")
    expected = ScoreResponse((ItemResult({"ber": bad}, None), ItemResult({"ber": Score(0.5)}, Score(1.0))), "r")
    assert merge_parts(PARTS, 2) == expected


@pytest.mark.parametrize(
    ("parts", "kind", "message"),
    [
        (PARTS[:2], Unavailable, r"request 'r' ended after 2 parts, .*; send the request again with the same"),
        ([], Unavailable, "ended after 0 parts"),
        ([PARTS[0], PARTS[0]], SynodError, "the outcome of 'ber' for item 1 came twice"),
        ([ScoredItem("r", 2, "ber", Score(0.5))], SynodError, "a part is of item 2, but only 2 items were sent"),
        ([ScoredItem("s", 0, "ber", Score(0.5))], SynodError, "a part belongs to request 's', but 'r' was sent"),
        ([*PARTS, PARTS[0]], SynodError, "a part of request 'r' came after its last"),
        ([PARTS[0], PARTS[2]], SynodError, "ended with 2 of 2 rewards and 1 outcomes missing"),
        ([*PARTS[:2], Rewards("r", ())], SynodError, "ended with 0 of 2 rewards and 0 outcomes missing"),
        ([PARTS[0], RequestError("r", Overloaded("full"))], Overloaded, "^full$"),
        ([RequestError("", UnknownScorer("no such"))], UnknownScorer, "^no such$"),
    ],
)
def test_incomplete_stream_is_an_error(parts: list[Part], kind: type[SynodError], message: str) -> None:
    with pytest.raises(SynodError, match=message) as raised:
        read_all(parts)
    assert type(raised.value) is kind


def test_unreadable_part_is_an_internal_error() -> None:
    with pytest.raises(SynodError, match="a part of the response cannot be read") as raised:
        PartReader(REQUEST, CODECS["application/json"]).read(b"<html>")
    assert type(raised.value) is SynodError


def test_describe_unready_lists_scorers() -> None:
    scorers = {"ber": {"ready": False, "reason": "loading"}, "der": {"ready": True, "reason": ""}}
    body = json.dumps({"ready": False, "scorers": scorers}).encode()
    assert describe_unready(RawResponse(200, "application/json", body)) is None
    assert describe_unready(RawResponse(503, "application/json", body)) == "ber (loading)"
    for odd in (b"", b"[]", b"{}", b'{"scorers": [1]}', b'{"scorers": {"ber": {}}}', b'{"scorers": {}}', b"\xff"):
        assert (describe_unready(RawResponse(503, "text/plain", odd)) or "").startswith("HTTP 503 of type 'text/plain'")
