"""One contract, three formats: every record comes back equal from each of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synod import contracts as c
from synod.codec import CODECS, JSON, MSGPACK, PROTOBUF, Codec
from synod.errors import InvalidRequest, Overloaded, UnknownImage
from tests.unit.synod.records import catalogues, comparable, errors, kept, parts, puts, requests, responses

ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
DIGEST = "blake2b-256:" + "0a" * 32
RECORDS: dict[str, st.SearchStrategy[Any]] = {
    "request": requests,
    "stream_request": requests,
    "response": responses,
    "part": parts,
    "error": errors,
    "put": puts,
    "digests": kept,
    "catalogue": catalogues,
}


@pytest.mark.parametrize("name", RECORDS)
@given(st.data())
def test_every_record_comes_back_from_every_format(name: str, data: st.DataObject) -> None:
    record = data.draw(RECORDS[name])
    for codec in CODECS.values():
        encoded = getattr(codec, f"encode_{name}")(record)
        assert comparable(getattr(codec, f"decode_{name}")(encoded)) == comparable(record)


@ALL
def test_whole_numbers_of_a_detail_stay_whole(codec: Codec) -> None:
    """A format without integers would answer 3.0, or lose the last digits of 2^53 + 1."""
    response = c.ScoreResponse((c.ItemResult({"a": c.Score(0.5, {"query": 3, "big": 2**53 + 1, "right": True})}),), "r")
    detail = codec.decode_response(codec.encode_response(response)).results[0].scores["a"].detail  # type: ignore[union-attr]
    assert [(value, type(value)) for value in detail.values()] == [(3, int), (2**53 + 1, int), (True, bool)]


@ALL
def test_absent_and_empty_stay_different(codec: Codec) -> None:
    for request in (
        c.ScoreRequest((c.ScoreItem(prompt=""),), weights={}, request_id=""),
        c.ScoreRequest((c.ScoreItem(),), weights=None, request_id=None),
    ):
        assert codec.decode_request(codec.encode_request(request)) == request
    for result in (c.ItemResult({}, c.Score(0.0)), c.ItemResult({}, None)):
        response = c.ScoreResponse((result,), "")
        assert codec.decode_response(codec.encode_response(response)) == response
    for rewards in (c.Rewards("r", (None, c.Score(0.0))), c.Rewards("r", ())):
        assert codec.decode_part(codec.encode_part(rewards)) == rewards


@ALL
def test_a_digest_of_another_form_is_not_sent(codec: Codec) -> None:
    for digest in ("", "cat", DIGEST.upper(), DIGEST + "0", "md5:" + "0" * 64):
        with pytest.raises(InvalidRequest, match=r"^items\[0\]\.references\[1\]\.digest: .* 64 lower-case hex digits$"):
            codec.encode_request(c.ScoreRequest((c.ScoreItem(references=(b"x", c.ImageRef(digest))),)))


@ALL
def test_an_image_to_keep_is_given_itself(codec: Codec) -> None:
    by_digest = codec.dumps({"images": [{"digest": DIGEST}]}, "PutImagesRequest")
    with pytest.raises(InvalidRequest, match=r"^images\[0\]\.(digest: unknown key|data: missing)"):
        codec.decode_put(by_digest)
    with pytest.raises(InvalidRequest, match=r"^images: empty; send at least one image$"):
        codec.decode_put(codec.dumps({"images": []}, "PutImagesRequest"))


@ALL
def test_what_an_older_service_answers_is_read(codec: Codec) -> None:
    """A score without origin, an error without digests or waiting time."""
    outcome = {"value": 0.5, "detail": {}}
    answer = {"request_id": "r", "results": [{"scores": {"a": outcome}, "reward": None}]}
    response = codec.dumps(answer, "ScoreResponse")
    assert codec.decode_response(response).results[0].scores["a"] == c.Score(0.5)
    error = codec.dumps({"error": {"code": "unknown_image", "retryable": True, "message": "m"}}, "Error")
    assert comparable(codec.decode_error(error)) == (UnknownImage, "m", (), None)


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
def test_nothing_is_added_where_nothing_is_known(codec: Codec) -> None:
    """An older client reads strictly: a new field is sent only where it says something. (Protobuf skips new ones.)"""
    response = c.ScoreResponse((c.ItemResult({"a": c.Score(0.5)}),), "r")
    answer = codec.loads(codec.encode_response(response), "ScoreResponse")
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
    scored = c.ScoredItem("r", 1, "a", c.Score(float("nan"), {}, c.Origin("m", "p")))
    part = codec.decode_part(codec.encode_part(scored))
    assert isinstance(part, c.ScoredItem)
    assert isinstance(part.outcome, c.ScoreFailure)
    assert part.outcome.code == "scorer_failed"


def test_a_json_part_is_one_line() -> None:
    codec = CODECS["application/json"]
    for part in (c.ScoredItem("a\nb", 0, "x", c.Score(0.5, {"t": "c\r\nd\u2028"})), c.Rewards("r", (None,))):
        assert len(codec.encode_part(part).splitlines()) == 1
