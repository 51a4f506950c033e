"""One contract, three formats: every record comes back equal from each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given

from synod.codec import CODECS, JSON, MSGPACK, PROTOBUF, Codec
from synod.contracts import (
    ImageRef,
    ItemResult,
    Origin,
    Rewards,
    Score,
    ScoredItem,
    ScoreFailure,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
)
from synod.errors import InvalidRequest, Overloaded, UnknownImage
from tests.unit.synod.records import catalogues, comparable, errors, kept, parts, puts, requests, responses

ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
DIGEST = "blake2b-256:" + "0a" * 32


def comes_back(record: Any, encode: Callable[[Codec, Any], bytes], decode: Callable[[Codec, bytes], Any]) -> None:
    for codec in CODECS.values():
        assert comparable(decode(codec, encode(codec, record))) == comparable(record)


@given(requests)
def test_requests(request: ScoreRequest) -> None:
    comes_back(request, Codec.encode_request, Codec.decode_request)


@given(responses)
def test_responses(response: ScoreResponse) -> None:
    comes_back(response, Codec.encode_response, Codec.decode_response)


@given(parts)
def test_parts_of_a_stream(part: Any) -> None:
    comes_back(part, Codec.encode_part, Codec.decode_part)


@given(errors)
def test_errors(error: Any) -> None:
    comes_back(error, Codec.encode_error, Codec.decode_error)


@given(puts)
def test_images_to_keep(put: Any) -> None:
    comes_back(put, Codec.encode_put, Codec.decode_put)


@given(kept)
def test_digests_of_images_kept(digests: Any) -> None:
    comes_back(digests, Codec.encode_digests, Codec.decode_digests)


@given(catalogues)
def test_catalogues(catalogue: Any) -> None:
    comes_back(catalogue, Codec.encode_catalogue, Codec.decode_catalogue)


@ALL
def test_whole_numbers_of_a_detail_stay_whole(codec: Codec) -> None:
    """A format without integers would answer 3.0, or lose the last digits of 2^53 + 1."""
    response = ScoreResponse((ItemResult({"a": Score(0.5, {"query": 3, "big": 2**53 + 1, "right": True})}),), "r")
    detail = codec.decode_response(codec.encode_response(response)).results[0].scores["a"].detail  # type: ignore[union-attr]
    assert [(value, type(value)) for value in detail.values()] == [(3, int), (2**53 + 1, int), (True, bool)]


@ALL
def test_absent_and_empty_are_told_apart_where_they_differ(codec: Codec) -> None:
    for request in (
        ScoreRequest((ScoreItem(prompt=""),), weights={}, request_id=""),
        ScoreRequest((ScoreItem(),), weights=None, request_id=None),
    ):
        assert codec.decode_request(codec.encode_request(request)) == request
    for response in (ScoreResponse((ItemResult({}, Score(0.0)),), ""), ScoreResponse((ItemResult({}, None),), "")):
        assert codec.decode_response(codec.encode_response(response)) == response
    for rewards in (Rewards("r", (None, Score(0.0))), Rewards("r", ())):
        assert codec.decode_part(codec.encode_part(rewards)) == rewards


@ALL
def test_a_digest_of_another_form_is_not_sent(codec: Codec) -> None:
    for digest in ("", "cat", DIGEST.upper(), DIGEST + "0", "md5:" + "0" * 64):
        with pytest.raises(InvalidRequest, match=r"^items\[0\]\.references\[1\]\.digest: .* 64 lower-case hex digits$"):
            codec.encode_request(ScoreRequest((ScoreItem(references=(b"x", ImageRef(digest))),)))


@ALL
def test_an_image_to_keep_is_given_itself(codec: Codec) -> None:
    by_digest = codec.dumps({"images": [{"digest": DIGEST}]}, "PutImagesRequest")
    with pytest.raises(InvalidRequest, match=r"^images\[0\]\.(digest: unknown key|data: missing)"):
        codec.decode_put(by_digest)
    with pytest.raises(InvalidRequest, match=r"^images: empty; send at least one image$"):
        codec.decode_put(codec.dumps({"images": []}, "PutImagesRequest"))


@ALL
def test_what_an_older_service_answers_is_read(codec: Codec) -> None:
    """No origin beside a score, no digests or waiting time beside an error."""
    outcome = {"value": 0.5, "detail": {}}
    response = codec.dumps(
        {"request_id": "r", "results": [{"scores": {"a": outcome}, "reward": None}]}, "ScoreResponse"
    )
    assert codec.decode_response(response).results[0].scores["a"] == Score(0.5)
    error = codec.dumps({"error": {"code": "unknown_image", "retryable": True, "message": "m"}}, "Error")
    assert comparable(codec.decode_error(error)) == (UnknownImage, "m", (), None)


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
def test_nothing_is_added_where_nothing_is_known(codec: Codec) -> None:
    """An older client reads strictly: a new field is sent only where it says something. (Protobuf skips new ones.)"""
    answer = codec.loads(codec.encode_response(ScoreResponse((ItemResult({"a": Score(0.5)}),), "r")), "ScoreResponse")
    assert answer["results"][0]["scores"]["a"] == {"value": 0.5, "detail": {}}
    assert set(codec.loads(codec.encode_error(Overloaded("m")), "Error")["error"]) == {"code", "retryable", "message"}


def test_an_empty_message_is_no_part() -> None:
    with pytest.raises(InvalidRequest, match="0 of 'scored', 'rewards' and 'error'; a part is one of them"):
        PROTOBUF.decode_part(b"")


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
def test_a_part_is_one_thing(codec: Codec) -> None:
    scored = {"index": 0, "scorer": "a", "outcome": {"value": 1}}
    for body, message in (
        ({"request_id": "r"}, "0 of 'scored', 'rewards' and 'error'"),
        ({"request_id": "r", "rewards": [], "scored": scored}, "2 of 'scored'"),
        ({"request_id": "r", "scored": scored | {"index": -1}}, r"^scored\.index: -1; give a whole number from 0"),
        ({"scored": scored}, "^request_id: missing$"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            codec.decode_part(codec.dumps(body, ""))


@ALL
def test_a_part_that_cannot_be_carried_is_a_failure(codec: Codec) -> None:
    part = codec.decode_part(codec.encode_part(ScoredItem("r", 1, "a", Score(float("nan"), {}, Origin("m", "p")))))
    assert isinstance(part, ScoredItem)
    assert isinstance(part.outcome, ScoreFailure)
    assert part.outcome.code == "scorer_failed"


def test_a_json_part_is_one_line() -> None:
    codec = CODECS["application/json"]
    for part in (ScoredItem("a\nb", 0, "x", Score(0.5, {"t": "c\r\nd\u2028"})), Rewards("r", (None,))):
        assert len(codec.encode_part(part).splitlines()) == 1
