"""HTTP without a server: content types, limits, errors, health, documents."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest

from services.gateway import app
from services.gateway.core import Gateway
from services.gateway.schema.examples import RED_PNG
from synod.codec import CODECS
from synod.contracts import ItemResult, Score, ScoreItem, ScoreRequest, ScoreResponse
from synod.errors import SynodError
from tests.unit.services.gateway.conftest import Refuse

ERRORS = [
    error
    for child in SynodError.__subclasses__()
    for error in (child, *child.__subclasses__())
    if error.__module__ == "synod.errors"
]
JSON, MSGPACK = "application/json", "application/msgpack"
BODY = json.dumps({"items": [{"image": RED_PNG}], "scorers": ["a"]}).encode()


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app.build(gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


async def post(http: httpx.AsyncClient, body: Any, kind: str = JSON, **headers: str) -> httpx.Response:
    return await http.post("/v1/score", content=body, headers={"content-type": kind, **headers})


async def test_both_formats_round_trip(http: httpx.AsyncClient) -> None:
    request = ScoreRequest((ScoreItem(np.full((4, 4, 3), 51, np.uint8)),), ("a",), request_id="r")
    for kind in (JSON, MSGPACK):
        answer = await post(http, CODECS[kind].encode_request(request), f"{kind}; charset=utf-8")
        assert answer.headers["content-type"] == kind
        assert answer.headers["x-synod-request-id"] == "r"
        response = CODECS[kind].decode_response(answer.content)
        assert response == ScoreResponse((ItemResult({"a": Score(0.2)}),), "r")


@pytest.mark.parametrize(
    ("accept", "sent", "answered"),
    [
        ("", MSGPACK, MSGPACK),
        ("*/*", JSON, JSON),
        ("text/html, application/msgpack;q=0.5", JSON, MSGPACK),
        ("text/html", MSGPACK, MSGPACK),
    ],
)
async def test_response_type_follows_accept_and_body(
    http: httpx.AsyncClient, accept: str, sent: str, answered: str
) -> None:
    body = CODECS[sent].encode_request(CODECS[JSON].decode_request(BODY))
    answer = await post(http, body, sent, accept=accept)
    assert answer.headers["content-type"] == answered
    assert len(CODECS[answered].decode_response(answer.content).results) == 1


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("DELETE", "/v1/score", 405)])
@pytest.mark.parametrize("kind", list(CODECS))
async def test_unknown_path_or_method_is_a_typed_error(
    http: httpx.AsyncClient, method: str, path: str, status: int, kind: str
) -> None:
    answer = await http.request(method, path, headers={"accept": kind})
    assert (answer.status_code, answer.headers["content-type"]) == (status, kind)
    error = CODECS[kind].decode_error(answer.content)
    assert error.code == "invalid_request"
    assert f"no endpoint {method} '{path}'" in error.message
    assert status == 404 or answer.headers["allow"] == "POST"


async def test_body_limit_counts_received_bytes(http: httpx.AsyncClient) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b" " * 1000

    for body in (b" " * 4097, stream()):
        answer = await post(http, body)
        assert answer.status_code == 413
        assert "4096" in answer.json()["error"]["message"]
    lying = await post(http, stream(), **{"content-length": "10"})
    assert lying.status_code == 413


@pytest.mark.parametrize(("kind", "accept"), [(JSON, JSON), (MSGPACK, MSGPACK), (JSON, "application/x-ndjson")])
async def test_long_request_id_is_refused(http: httpx.AsyncClient, kind: str, accept: str) -> None:
    request = CODECS[JSON].decode_request(BODY)
    for size, status in ((256, 200), (257, 413)):
        body = CODECS[kind].encode_request(replace(request, request_id="r" * size))
        answer = await post(http, body, kind, accept=accept)
        assert answer.status_code == status
    error = CODECS[kind].decode_error(answer.content)
    assert error.code == "payload_too_large"
    assert error.message == "request_id has 257 characters; the limit is 256. Shorten it"


async def test_unexpected_error_is_a_500_without_details(
    http: httpx.AsyncClient, refuse: Refuse, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(RuntimeError("the secret"))
    with caplog.at_level(logging.ERROR, "synod.gateway"):
        answer = await post(http, BODY, **{"x-request-id": "seven"})
    assert answer.status_code == 500
    message = "internal error; report request id seven to the operator"
    assert answer.json() == {"error": {"code": "internal", "retryable": False, "message": message}}
    assert "the secret" in caplog.text


@pytest.mark.parametrize("error", ERRORS)
async def test_each_error_of_the_tree_has_its_status(
    http: httpx.AsyncClient, refuse: Refuse, error: type[SynodError]
) -> None:
    refuse(error("why"))
    for kind in (JSON, MSGPACK):
        answer = await post(http, BODY, accept=kind)
        assert answer.status_code == error.http_status
        assert ("retry-after" in answer.headers) == error.retryable
        read = CODECS[kind].decode_error(answer.content)
        assert (read.code, read.retryable, read.message) == (error.code, error.retryable, "why")


async def test_response_names_its_request_with_a_safe_id(http: httpx.AsyncClient) -> None:
    for headers, expected in (({"x-request-id": "from-header"}, {"from-header"}), ({}, None)):
        answer = await post(http, BODY, **headers)
        assert {answer.headers["x-synod-request-id"]} == (expected or {answer.json()["request_id"]}) != {""}
    answer = await post(http, json.dumps(json.loads(BODY) | {"request_id": "ü\n"}))
    assert answer.json()["request_id"] == "ü\n"
    assert "x-synod-request-id" not in answer.headers
    assert (await post(http, b"{")).headers["x-synod-request-id"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-pickle", ""])
async def test_unknown_content_type_is_refused(http: httpx.AsyncClient, kind: str) -> None:
    answer = await post(http, BODY, kind)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert MSGPACK in answer.json()["error"]["message"]


async def test_health_readiness_discovery(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).json() == {"alive": True}
    ready = await http.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["ready"] is False
    assert ready.json()["scorers"]["b"] == {"ready": False, "replicas": 0, "wanted": 1, "reason": "loading"}
    scorers = (await http.get("/v1/scorers")).json()
    assert [one["name"] for one in scorers["scorers"]] == ["a", "b", "face"]
    assert scorers["limits"]["max_items"] == 8
    loaded = {"device": "cuda:0", "dtype": "bfloat16", "load_s": 1.5, "parameter_bytes": 4096}
    assert {key: scorers["scorers"][0][key] for key in loaded} == loaded
    assert not loaded.keys() & scorers["scorers"][1].keys(), "it is still loading"
    assert "synod_requests_total" in (await http.get("/metrics")).text


async def test_document_describes_what_the_codec_reads(http: httpx.AsyncClient) -> None:
    """Each example can be decoded and validates; the page shows all without another site."""
    document = (await http.get("/openapi.json")).json()
    body = document["paths"]["/v1/score"]["post"]["requestBody"]["content"]["application/json"]
    for example in body["examples"].values():
        jsonschema.validate(example["value"], body["schema"])
        assert CODECS[JSON].decode_request(json.dumps(example["value"]).encode()).items
    answer = document["paths"]["/v1/score"]["post"]["responses"]["200"]["content"]["application/json"]
    jsonschema.validate(answer["example"], answer["schema"])
    assert CODECS[JSON].decode_response(json.dumps(answer["example"]).encode()).results
    page = (await http.get("/docs")).text
    assert all(path in page for path in document["paths"])
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
