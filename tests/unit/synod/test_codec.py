"""The wire formats one by one: what they carry, and what is hostile is refused with its path."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from synod import contracts
from synod.codec import CODECS, JSON, MSGPACK, PROTOBUF, codec_for
from synod.contracts import ItemResult, Reasoning, Score, ScoreFailure, ScoreItem, ScoreRequest, ScoreResponse
from synod.errors import InvalidRequest, PayloadTooLarge, UnsupportedMedia
from synod.formats import MAX_VALUES
from synod.protobuf.meter import MAX_FIELDS
from synod.reader import MAX_ENTRIES
from tests.unit.synod.records import plain, requests

BOTH = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])  # bodies that describe themselves
ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
DIGEST = "blake2b-256:" + "0a" * 32


@ALL
def test_an_unknown_error_code_keeps_name_and_retryability(codec: Any) -> None:
    got = codec.decode_error(codec.dumps({"error": {"code": "tired", "retryable": True, "message": "later"}}, "Error"))
    assert (got.retryable, got.message) == (True, "tired: later")


def test_msgpack_shares_its_bytes_with_the_pixels() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    body = MSGPACK.encode_request(ScoreRequest((ScoreItem(b"abc", None, (pixels[::-1],)),)))
    item = msgpack.unpackb(body)["items"][0]
    assert item == {"image": b"abc", "references": [{"data": pixels[::-1].tobytes(), "shape": [2, 2, 3]}]}
    decoded = MSGPACK.decode_request(body).items[0].references[0]
    assert isinstance(decoded, np.ndarray)
    assert not decoded.flags.owndata  # a view of what was read, not a copy
    assert not decoded.flags.writeable


@ALL
def test_an_image_may_be_any_view(codec: Any) -> None:
    pixels = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    for view in (pixels[::-1, ::-1, ::-1], pixels[..., ::-1], pixels[::2, 1:], pixels.transpose(1, 0, 2)):
        image = codec.decode_request(codec.encode_request(ScoreRequest((ScoreItem(view),)))).items[0].image
        np.testing.assert_array_equal(image, view)


def test_json_carries_standard_base64() -> None:
    body = json.loads(JSON.encode_request(ScoreRequest((ScoreItem(bytes(range(256))),))))
    assert base64.b64decode(body["items"][0]["image"]) == bytes(range(256))


# --- what is refused, and where ---


def with_item(**fields: Any) -> dict[str, Any]:
    return {"items": [{}, fields]}


REASONING = {"text": "t", "segments": ["a", "b"], "truth": [1, 0]}
CLAUSE = {"class": "dog", "count": 1}


def positioned(*position: Any) -> dict[str, Any]:
    return with_item(geneval={"tag": "t", "include": [CLAUSE, CLAUSE | {"position": position}]})


REFUSED: list[tuple[Any, str]] = [
    ([], r"^the body: a list where an object belongs$"),
    (None, r"^the body: null where an object belongs$"),
    ({}, r"^items: missing$"),
    ({"items": None}, r"^items: missing$"),
    ({"items": []}, r"^items: empty; send at least one item$"),
    ({"items": {}}, r"^items: an object where a list belongs$"),
    ({"items": [3]}, r"^items\[0\]: a number where an object belongs$"),
    ({"items": [{}], "scorer": "ber"}, r"^scorer: unknown key; known here: items, scorers, ensemble"),
    ({"items": [{}], "scorer": None}, r"^scorer: unknown key"),
    ({"items": [{}], "scorers": "ber"}, r"^scorers: a string where a list belongs$"),
    ({"items": [{}], "scorers": ["ber", 1]}, r"^scorers\[1\]: a number where a string belongs$"),
    ({"items": [{}], "ensemble": True}, r"^ensemble: a boolean where a string belongs$"),
    ({"items": [{}], "weights": {"ber": math.nan}}, r"^weights\.ber: nan; give a finite number >= 0$"),
    ({"items": [{}], "weights": {"ber": math.inf}}, r"^weights\.ber: inf; give a finite number >= 0$"),
    ({"items": [{}], "weights": {"ber": -0.5}}, r"^weights\.ber: -0\.5; give a finite number >= 0$"),
    ({"items": [{}], "weights": {"ber": True}}, r"^weights\.ber: a boolean where a number belongs$"),
    ({"items": [{}], "weights": {"ber": "1"}}, r"^weights\.ber: a string where a number belongs$"),
    ({"items": [{}], "weights": {"ber": None}}, r"^weights\.ber: null where a number belongs$"),
    ({"items": [{}], "timeout_ms": 0}, r"^timeout_ms: 0; give a whole number from 1 to"),
    ({"items": [{}], "timeout_ms": 1.0}, r"^timeout_ms: a number where a whole number belongs$"),
    ({"items": [{}], "timeout_ms": True}, r"^timeout_ms: a boolean where a whole number belongs$"),
    (with_item(prompt=["a"]), r"^items\[1\]\.prompt: a list where a string belongs$"),
    (with_item(Prompt="a"), r"^items\[1\]\.Prompt: unknown key; known here: image, prompt"),
    (with_item(references="abc"), r"^items\[1\]\.references: a string where a list belongs$"),
    (with_item(references=[None]), r"^items\[1\]\.references\[0\]: "),
    (with_item(image=7), r"^items\[1\]\.image: "),
    (with_item(image={"shape": [1, 1, 3]}), r"^items\[1\]\.image\.data: missing$"),
    (with_item(image={"data": None, "shape": [1, 1, 3]}), r"^items\[1\]\.image\.data: missing$"),
    (with_item(image={"digest": DIGEST[:-1]}), r"^items\[1\]\.image\.digest: 'blake2b-256:.*64 lower-case hex digits$"),
    (with_item(image={"digest": DIGEST.upper()}), r"^items\[1\]\.image\.digest: 'BLAKE2B-256:"),
    (with_item(image={"digest": "sha256:" + "0a" * 32}), r"^items\[1\]\.image\.digest: 'sha256:"),
    (with_item(image={"digest": DIGEST + "\n"}), r"^items\[1\]\.image\.digest: "),
    (with_item(references=[{"digest": 7}]), r"^items\[1\]\.references\[0\]\.digest: a number where a string belongs$"),
    (with_item(image={"digest": DIGEST, "shape": [1, 1, 3]}), r"^items\[1\]\.image\.shape: unknown key; .*: digest$"),
    (with_item(reasoning=REASONING | {"truth": [1]}), r"^items\[1\]\.reasoning: truth has 1 entries for 2 segments"),
    (with_item(reasoning=REASONING | {"truth": [1, 2]}), r"^items\[1\]\.reasoning\.truth\[1\]: 2; .*>= 0 and <= 1$"),
    (with_item(reasoning=REASONING | {"truth": [1, math.nan]}), r"^items\[1\]\.reasoning\.truth\[1\]: nan;"),
    (with_item(reasoning=REASONING | {"truth": [1, False]}), r"^items\[1\]\.reasoning\.truth\[1\]: a boolean"),
    (with_item(reasoning={"segments": [], "truth": []}), r"^items\[1\]\.reasoning\.text: missing$"),
    (with_item(geneval={"include": []}), r"^items\[1\]\.geneval\.tag: missing$"),
    (with_item(geneval={"tag": "t"}), r"^items\[1\]\.geneval\.include: missing$"),
    (with_item(geneval={"tag": "t", "include": [{"class": "dog"}]}), r"\.include\[0\]\.count: missing$"),
    (with_item(geneval={"tag": "t", "include": [CLAUSE | {"count": 0}]}), r"\.include\[0\]\.count: 0; .*from 1 to"),
    (with_item(geneval={"tag": "t", "include": [CLAUSE | {"prompt": "x"}]}), r"\.include\[0\]\.prompt: unknown key"),
    (with_item(geneval={"tag": "t", "include": [CLAUSE | {"size": "x"}]}), r"\.include\[0\]\.size: unknown key"),
    (
        positioned("left of", 2),
        r"^items\[1\]\.geneval\.include\[1\]\.position\[1\]: 2; give a whole number from 0 to 1$",
    ),
    (positioned("left of", -1), r"^items\[1\]\.geneval\.include\[1\]\.position\[1\]: -1; "),
    (positioned("near", 0), r"\.position\[0\]: 'near'; give one of left of, right of, above, below$"),
    (positioned("above"), r"\.position: 1 entries; give"),
    (with_item(concept={"kind": "plant"}), r"^items\[1\]\.concept\.kind: 'plant'; give one of person, animal, object$"),
    (with_item(concept={}), r"^items\[1\]\.concept\.kind: missing$"),
    (with_item(prompt={"x" * 1000: 1}), r"^items\[1\]\.prompt: an object where a string belongs$"),
    ({"y" * 1000: 1}, r"^y{50,70}\.*: unknown key"),
    ({"items": [{}] * (MAX_ENTRIES + 1)}, rf"^items: {MAX_ENTRIES + 1} entries, the limit is {MAX_ENTRIES}$|not app"),
]


@pytest.mark.parametrize(("body", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
@BOTH
def test_a_malformed_request_names_the_path(codec: Any, body: Any, message: str) -> None:
    data = json.dumps(body).encode() if codec is JSON else msgpack.packb(body)
    with pytest.raises(InvalidRequest, match=message):
        codec.decode_request(data)


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ([2, 2, 3], 11, r"image: 11 bytes for shape \[2, 2, 3\], which needs 12$"),
        ([2, 2, 3], 13, r"image: 13 bytes for shape"),
        ([2, 2, 4], 16, r"image: shape \[2, 2, 4\]; a raw image is \[H, W, 3\]"),
        ([12], 12, r"image: shape \[12\]"),
        ([0, 2, 3], 0, r"image\.shape\[0\]: 0; give a whole number from 1"),
        ([-2, -2, 3], 12, r"image\.shape\[0\]: -2"),
        ([2.0, 2, 3], 12, r"image\.shape\[0\]: a number where a whole number belongs"),
        ([True, 4, 3], 12, r"image\.shape\[0\]: a boolean"),
        ([2**62, 2**62, 3], 12, r"image: 12 bytes for shape"),
        ("223", 12, r"image\.shape: a string"),
    ],
)
@BOTH
def test_a_raw_image_must_fit_its_shape(codec: Any, shape: Any, size: int, message: str) -> None:
    body = {"items": [{"image": {"data": codec.pack_bytes(bytes(size)), "shape": shape}}]}
    with pytest.raises(InvalidRequest, match=r"^items\[0\]\." + message):
        codec.decode_request(codec.dumps(body, "ScoreRequest"))


@pytest.mark.parametrize(
    "text",
    ["a", "abc", "ab=c", "====", "aGk", "aGk==", "data:image/png;base64,aGk=", "é", "_-__", "aG\u00a0k="],
)
def test_json_keeps_what_is_not_base64_for_its_item(text: str) -> None:
    request = JSON.decode_request(json.dumps({"items": [{"references": ["aGk=", text]}, {"prompt": "a"}]}).encode())
    good, bad = request.items[0].references
    assert good == b"hi"
    assert isinstance(bad, contracts.UnreadableImage)
    assert bad.why.startswith("not base64: ")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("data:image/png;base64,aGk=", "it begins with 'data:'; send what follows the comma"),
        ("aGk", "3 characters, which is not a multiple of 4"),
        ("aG_k", "character 2 is '_', of the URL-safe alphabet"),
        ("aG$k", "character 2 is '$'; send the standard alphabet"),
    ],
)
def test_what_is_not_base64_is_named(text: str, why: str) -> None:
    (item,) = JSON.decode_request(json.dumps({"items": [{"image": {"data": text, "shape": [1, 1, 3]}}]}).encode()).items
    assert isinstance(item.image, contracts.UnreadableImage)
    assert why in item.image.why
    with pytest.raises(InvalidRequest, match=r"^images\[0\]: not base64"):
        JSON.decode_put(json.dumps({"images": [text]}).encode())


@BOTH
def test_a_geneval_clause_may_be_padded_with_nulls(codec: Any) -> None:
    padded = CLAUSE | {"color": None, "position": None, "region": None, "size": None}
    body = {"items": [{"geneval": {"tag": "t", "include": [padded], "exclude": None}}]}
    bare = {"items": [{"geneval": {"tag": "t", "include": [CLAUSE]}}]}
    requests = [codec.decode_request(codec.dumps(one, "ScoreRequest")) for one in (body, bare)]
    assert requests[0] == requests[1]


@pytest.mark.parametrize("text", ["aGVs\nbG8=\n", "aGVs\r\nbG8=", " a GVs\tbG8=", "aGVsbG8="])
def test_base64_may_hold_whitespace(text: str) -> None:
    assert JSON.decode_request(json.dumps({"items": [{"image": text}]}).encode()).items[0].image == b"hello"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the body is not application/json"),
        (b"{", "the body is not application/json"),
        (b"\xff\xfe{}", "the body is not application/json: UnicodeDecodeError"),
        (b'{"items": [{}]} x', "Extra data"),
        (b'{"items": [{}], "items": [{}]}', "the key 'items' occurs twice in one object"),
        (b'{"items": [{"prompt": "a", "prompt": "b"}]}', "the key 'prompt' occurs twice"),
        (b'{"items": [{"prompt": "\\ud800"}]}', r"items\[0\]\.prompt: a string with a lone surrogate"),
        (b'{"\\ud800": 1}', "lone surrogate"),
        (b'{"items": [{}], "weights": {"ber": NaN}}', r"weights\.ber: nan; give a finite number >= 0"),
        (b'{"items": [{}], "weights": {"ber": -Infinity}}', r"weights\.ber: -inf"),
        (b'{"items": [{}], "weights": {"ber": 1e999}}', r"weights\.ber: inf"),
        (b'{"items": [{}], "weights": {"ber": 1' + b"0" * 400 + b"}}", r"weights\.ber: an integer of 1329 bits"),
        (b'{"items": [{}], "timeout_ms": 1' + b"0" * 5000 + b"}", "the body is not application/json"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"items":' * 100_000, "nested too deep"),
    ],
)
def test_hostile_json(data: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        JSON.decode_request(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the body is not application/msgpack"),
        (b"\xc1", "the body is not application/msgpack"),
        (b"\x81", "the body is not application/msgpack"),
        (msgpack.packb({"items": [{}]}) + b"\0", "ExtraData"),
        (b"\xdd\xff\xff\xff\xff", "the body is not application/msgpack"),
        (b"\xdf\xff\xff\xff\xff", "the body is not application/msgpack"),
        (b"\xc6\xff\xff\xff\xff", "the body is not application/msgpack"),
        (b"\x91" * 100_000, "the body is not application/msgpack"),
        (b"\xa1\xff", "UnicodeDecodeError"),
        (msgpack.packb({1: 2}), "the body is not application/msgpack"),
        (msgpack.packb({b"items": [{}]}), "a key: bytes where a string belongs"),
        (b"\x82\xa5items\x91\x80\xa5items\x91\x80", "the key 'items' occurs twice"),
        (
            msgpack.packb({"items": [{"image": "text"}]}),
            r'^items\[0\]\.image: bytes \(msgpack bin\), {"data", "shape"} or {"digest"}',
        ),
        (msgpack.packb({"items": [{"prompt": b"bytes"}]}), r"items\[0\]\.prompt: bytes where a string belongs"),
        (msgpack.packb({"items": [msgpack.ExtType(5, b"x")]}), "the body holds a msgpack extension of type 5"),
        (msgpack.packb({"items": [msgpack.Timestamp(1)]}), r"items\[0\]: Timestamp where an object belongs"),
    ],
)
def test_hostile_msgpack(data: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        MSGPACK.decode_request(data)


@BOTH
def test_a_body_that_unfolds_is_refused_while_it_is_small(codec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty lists cost a byte or two on the wire and some 80 in memory."""
    limit = 2**14
    monkeypatch.setattr("synod.formats.MAX_VALUES", limit)
    body = codec.dumps([[[]] * 1000] * 200, "ScoreRequest")
    assert len(body) < 700_000
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge, match=f"the limit is {limit}"):
            codec.decode_request(body)
        assert tracemalloc.get_traced_memory()[1] < 90 * limit
    finally:
        tracemalloc.stop()


def test_a_full_request_stays_far_below_the_limit_of_values() -> None:
    item = ScoreItem(b"", ",[{" * 1000, (), Reasoning("t", ("s",) * 64, (1.0,) * 64))
    assert (MAX_VALUES, MAX_FIELDS) == (2**22, 2**18)
    for codec in CODECS.values():
        assert len(codec.decode_request(codec.encode_request(ScoreRequest((item,) * 256))).items) == 256


@effort(max_examples=300)
@given(st.binary(max_size=60) | plain.map(lambda tree: json.dumps(tree).encode()) | plain.map(msgpack.packb))
def test_any_bytes_decode_or_raise_invalid_request(data: bytes) -> None:
    for codec in CODECS.values():
        for name in ("request", "response", "error", "part", "put", "digests", "catalogue", "object"):
            with contextlib.suppress(InvalidRequest):
                getattr(codec, f"decode_{name}")(data)


@given(requests, st.data())
def test_mutated_bodies_decode_or_raise_invalid_request(request: ScoreRequest, data: st.DataObject) -> None:
    for codec in CODECS.values():
        body = bytearray(codec.encode_request(request))
        at = data.draw(st.integers(0, len(body)))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        with contextlib.suppress(InvalidRequest):
            codec.decode_request(bytes(body))


# --- what is not sent ---


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ScoreRequest((ScoreItem(np.zeros((3, 4, 4), np.uint8)),)), r"^items\[0\]\.image: uint8 \[3, 4, 4\]; a raw"),
        (ScoreRequest((ScoreItem(references=(np.zeros((4, 4, 3)),)),)), r"^items\[0\]\.references\[0\]: float64"),  # type: ignore[arg-type]
        (ScoreRequest((ScoreItem(),), weights={"ber": math.nan}), r"^weights\.ber: nan"),
        (
            ScoreRequest((ScoreItem(reasoning=Reasoning("t", ("a",), (math.inf,))),)),
            r"^items\[0\]\.reasoning\.truth\[0\]",
        ),
        (ScoreRequest((ScoreItem(),), timeout_ms=2**70), None),
    ],
)
@BOTH
def test_a_request_that_no_service_would_take_is_not_sent(
    codec: Any, request_: ScoreRequest, message: str | None
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        codec.decode_request(codec.encode_request(request_))


def test_a_lone_surrogate_cannot_be_sent_as_msgpack() -> None:
    with pytest.raises(InvalidRequest, match="the request cannot be sent as application/msgpack"):
        MSGPACK.encode_request(ScoreRequest((ScoreItem(prompt="\ud800"),)))


@pytest.mark.parametrize(
    "bad",
    [
        Score(math.nan),
        Score(math.inf),
        Score(0.5, {"box": [0.0, math.nan]}),
        Score(0.5, {"mask": np.zeros(3)}),
        Score(0.5, {"image": b"bytes"}),
        Score(0.5, {"n": 2**64}),
        Score(0.5, {"s": "\ud800"}),
        Score(0.5, {1: "x"}),  # type: ignore[dict-item]
        Score(0.5, {"deep": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}),
        Score(0.5, [1]),  # type: ignore[arg-type]
    ],
)
@ALL
def test_a_score_that_cannot_be_carried_fails_alone(codec: Any, bad: Score) -> None:
    good = Score(0.25, {"box": (0.0, 1.5)})
    response = ScoreResponse((ItemResult({"a": good, "b": bad}, bad), ItemResult({"a": good})), "r")
    first, second = codec.decode_response(codec.encode_response(response)).results
    assert first.scores["a"] == second.scores["a"] == Score(0.25, {"box": [0.0, 1.5]})
    for failed in (first.scores["b"], first.reward):
        assert isinstance(failed, ScoreFailure)
        assert failed.code == "scorer_failed"
        assert "the score cannot be sent: " in failed.message


@BOTH
def test_an_outcome_is_a_value_or_an_error(codec: Any) -> None:
    error = {"code": "c", "retryable": False, "message": "m"}
    for outcome, message in [
        ({}, r"results\[0\]\.scores\.ber\.value: missing"),
        ({"value": 1, "error": error}, r"results\[0\]\.scores\.ber: both an 'error' and a value"),
        ({"value": True}, r"results\[0\]\.scores\.ber\.value: a boolean"),
        ({"error": error | {"retryable": 1}}, r"results\[0\]\.scores\.ber\.error\.retryable: a number where a boolean"),
    ]:
        body = codec.dumps({"request_id": "r", "results": [{"scores": {"ber": outcome}}]}, "ScoreResponse")
        with pytest.raises(InvalidRequest, match=message):
            codec.decode_response(body)


# --- the table ---


@pytest.mark.parametrize(
    ("header", "codec"),
    [
        ("application/json", JSON),
        ("Application/JSON; charset=utf-8", JSON),
        (" application/msgpack ;q=1", MSGPACK),
        ("application/protobuf", PROTOBUF),
    ],
)
def test_a_content_type_finds_its_codec(header: str, codec: Any) -> None:
    assert codec_for(header) is codec


@pytest.mark.parametrize(
    "header", [None, "", "text/plain", "application/jsonx", "application", ";", "multipart/form-data"]
)
def test_another_content_type_is_refused_with_those_accepted(header: str | None) -> None:
    with pytest.raises(UnsupportedMedia, match="application/json, application/msgpack"):
        codec_for(header)
