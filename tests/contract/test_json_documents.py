"""The wire as written by hand: each document decodes to exactly these records. A change here breaks callers."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from synod import contracts as c
from synod.codec import CODECS
from synod.errors import InvalidRequest, Overloaded

DOCUMENTS = Path(__file__).parent / "documents"
JSON, MSGPACK = CODECS["application/json"], CODECS["application/msgpack"]
REFUSED = json.loads((DOCUMENTS / "refused.json").read_text())


def document(name: str) -> bytes:
    return (DOCUMENTS / name).read_bytes()


def as_msgpack(tree: Any, key: str = "") -> Any:
    """The same document in msgpack's shape: base64 text becomes bytes. A second reading of the rule, by field name."""
    if isinstance(tree, dict):
        return {name: as_msgpack(value, name) for name, value in tree.items()}
    if isinstance(tree, list):
        return [as_msgpack(value, key) for value in tree]
    if isinstance(tree, str) and key in ("image", "references", "data"):
        return base64.b64decode(tree)
    return tree


@pytest.mark.parametrize("format_", ["json", "msgpack"])
def test_the_full_request(format_: str) -> None:
    body = document("request_full.json")
    if format_ == "json":
        request = JSON.decode_request(body)
    else:
        request = MSGPACK.decode_request(msgpack.packb(as_msgpack(json.loads(body))))
    first, second = request.items
    encoded, pixels = first.references
    assert first.image == b"\x89PNG\r\n\x1a\n"
    assert encoded == b"\xff\xd8\xff\xe0"
    assert isinstance(pixels, np.ndarray)
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    assert first.prompt == "a photo of <bo>, vêtu d'un chapeau ☃"
    assert first.reasoning == c.Reasoning(
        "<bo> wears the red hat.", ("<bo> has a red hat", "<bo> has a blue bag"), (1.0, 0.0)
    )
    assert first.geneval == c.GenEvalMetadata(
        "position",
        (c.GenEvalClause("dog", 1), c.GenEvalClause("cat", 2, "red", ("left of", 0))),
        (c.GenEvalClause("cat", 3),),
    )
    assert first.concept == c.Concept("animal", "dog", "<bo>")
    assert first.source_prompt == "<bo> without a hat"
    assert second == c.ScoreItem()
    assert (request.scorers, request.ensemble) == (("tier", "ber"), "sync_r1")
    assert request.weights == {"tier": 0.4, "ber": 1.0}
    assert (request.timeout_ms, request.request_id) == (30000, "r-1")


def test_the_smallest_request_and_null_as_absent() -> None:
    request = JSON.decode_request(document("request_smallest.json"))
    assert request == c.ScoreRequest((c.ScoreItem(prompt="a cat", concept=c.Concept("object")),))


def test_the_response() -> None:
    bad = c.ScoreFailure("bad_image", "image: 8 bytes of PNG are truncated", False)
    assert JSON.decode_response(document("response.json")) == c.ScoreResponse(
        (
            c.ItemResult(
                {
                    "tier": c.Score(0.75, {"segments": [0.5, 1], "note": None, "right": True}),
                    "ber": bad,
                    "der": c.Score(-1.0, {}),
                },
                c.ScoreFailure("bad_image", "ber failed", False),
            ),
            c.ItemResult({}, None),
            c.ItemResult({"fer": c.ScoreFailure("replica_lost", "asked 3 times", True)}, None),
        ),
        "r-1",
    )


def test_the_response_is_written_as_it_is_read() -> None:
    failure = c.ScoreFailure("overloaded", "m", True)
    response = c.ScoreResponse(
        (c.ItemResult({"ber": c.Score(0.5, {"a": [1]}), "der": failure}), c.ItemResult({}, failure)), "r"
    )
    error = {"error": {"code": "overloaded", "retryable": True, "message": "m"}}
    expected = {
        "request_id": "r",
        "results": [
            {"scores": {"ber": {"value": 0.5, "detail": {"a": [1]}}, "der": error}, "reward": None},
            {"scores": {}, "reward": error},
        ],
    }
    assert json.loads(JSON.encode_response(response)) == expected
    assert msgpack.unpackb(MSGPACK.encode_response(response)) == expected


def test_the_error_body() -> None:
    error = JSON.decode_error(document("error.json"))
    assert type(error) is Overloaded
    assert json.loads(JSON.encode_error(error)) == json.loads(document("error.json"))
    assert msgpack.unpackb(MSGPACK.encode_error(error)) == json.loads(document("error.json"))


@pytest.mark.parametrize("case", REFUSED, ids=[case["why"] for case in REFUSED])
def test_a_refused_document_names_the_path(case: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as raised:
        JSON.decode_request(json.dumps(case["body"]).encode())
    path, _, why = raised.value.message.partition(": ")
    assert path == case["path"]
    assert case["says"] in why
