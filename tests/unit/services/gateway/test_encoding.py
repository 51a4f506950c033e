"""Compressed request bodies are decompressed up to the body limit, or refused, at every endpoint."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from base64 import b64encode, encodebytes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from services.gateway import app
from services.gateway.core import Gateway
from services.gateway.encoding import decompress
from services.settings import CompatSettings
from synod.codec import JSON, MSGPACK
from synod.contracts import PutImagesRequest, ScoreItem, ScoreRequest
from synod.errors import InvalidRequest, PayloadTooLarge
from synod.images import encode_png

PNG = encode_png(np.full((2, 2, 3), 51, np.uint8))
TEXT = b64encode(PNG).decode()
REQUEST = ScoreRequest((ScoreItem(PNG),), ("a",))
UNIRL = {"requests": [{"history": [{"text": "", "image_b64": TEXT}], "required_rewards": ["a"]}]}
OPENRLHF = {"query": [{"image": TEXT}], "prompts": ["p"], "labels": [None]}
BODIES: dict[str, tuple[str, str, dict[str, str], bytes]] = {
    "json": ("POST", "/v1/score", {"content-type": JSON.content_type}, JSON.encode_request(REQUEST)),
    "msgpack": ("POST", "/v1/score", {"content-type": MSGPACK.content_type}, MSGPACK.encode_request(REQUEST)),
    "ndjson": (
        "POST",
        "/v1/score",
        {"content-type": JSON.content_type, "accept": "application/x-ndjson"},
        JSON.encode_request(REQUEST),
    ),
    "images": ("PUT", "/v1/images", {"content-type": JSON.content_type}, JSON.encode_put(PutImagesRequest((PNG,)))),
    "unirl": ("POST", "/score", {}, json.dumps(UNIRL).encode()),
    "openrlhf": ("POST", "/openrlhf", {}, json.dumps(OPENRLHF).encode()),
}
ENCODERS = {"gzip": gzip.compress, "X-GZip": gzip.compress, "deflate": zlib.compress, "identity": lambda body: body}


@pytest.fixture
def http(gateway: Gateway) -> Iterator[TestClient]:
    with TestClient(app.build(gateway, compat=CompatSettings(unirl=True, openrlhf="a"))) as client:
        yield client


def send(http: TestClient, name: str, encoding: str, body: bytes) -> Any:
    method, path, headers, _ = BODIES[name]
    return http.request(method, path, headers={**headers, "content-encoding": encoding}, content=body)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("encoding", ENCODERS)
def test_compressed_body_is_read(http: TestClient, name: str, encoding: str) -> None:
    answer = send(http, name, encoding, ENCODERS[encoding](BODIES[name][3]))
    assert answer.status_code == 200, answer.text
    assert b'error"' not in answer.content


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress"])
def test_unknown_encoding_is_named(http: TestClient, name: str, encoding: str) -> None:
    answer = send(http, name, encoding, BODIES[name][3])
    assert answer.status_code == 415
    assert f"content encoding '{encoding}'; send one of gzip, deflate".encode() in answer.content


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_decompression_bomb_is_refused(http: TestClient, name: str, encoding: str) -> None:
    """4 MiB of zeros compress to about 4 kB, which is within the limit of 4096 bytes."""
    body = ENCODERS[encoding](b"0" * 3 * 2**20)
    assert len(body) < 4096
    answer = send(http, name, encoding, body)
    assert answer.status_code == 413
    assert b"decode to more than 4096 bytes" in answer.content


def test_decompression_bomb_is_not_expanded() -> None:
    body = gzip.compress(bytes(2**28))
    tracemalloc.start()
    with pytest.raises(PayloadTooLarge):
        decompress(body, "gzip", 2**16)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize(
    ("encoding", "body", "why"),
    [
        ("gzip", b'{"items": []}', "the body is not gzip .*; send the gzip format"),
        ("deflate", gzip.compress(b"{}", mtime=0), "the body is not deflate .*; send the zlib format, or no"),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-1], "cut off after"),
        ("gzip", b"", "cut off after 0 bytes"),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"more", "4 bytes follow the gzip body"),
    ],
)
def test_invalid_compressed_body_is_refused(encoding: str, body: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        decompress(body, encoding, 2**16)


@pytest.mark.parametrize("size", [99, 100, 101])
def test_decompressed_limit_is_exact(size: int) -> None:
    body = gzip.compress(bytes(size))
    if size <= 100:
        assert decompress(body, "gzip", 100) == bytes(size)
    else:
        with pytest.raises(PayloadTooLarge):
            decompress(body, "gzip", 100)


def test_openapi_document_names_the_encodings(http: TestClient) -> None:
    document = http.get("/openapi.json").json()
    for path, method in (("/v1/score", "post"), ("/v1/images", "put")):
        (header,) = document["paths"][path][method]["parameters"]
        assert (header["name"], header["in"]) == ("content-encoding", "header")
        assert header["schema"]["enum"] == ["gzip", "deflate"]


def test_item_with_invalid_base64_fails_alone(http: TestClient) -> None:
    """Line breaks, as `base64` and `encodebytes` write them, are skipped; a truncated text fails its item."""
    items = [{"image": encodebytes(PNG).decode()}, {"image": TEXT[:-1]}, {"image": TEXT}]
    answer = http.post("/v1/score", json={"items": items, "scorers": ["a"]})
    assert answer.status_code == 200, answer.text
    first, bad, last = (result["scores"]["a"] for result in answer.json()["results"])
    assert first["value"] == last["value"] == pytest.approx(0.2)
    assert bad["error"]["code"] == "bad_image"
    assert bad["error"]["message"].startswith("image: not base64: ")
