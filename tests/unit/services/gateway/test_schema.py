"""The OpenAPI document allows what codec and gateway accept, and describes all that they return."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.gateway import app, auth
from services.gateway.core import Gateway
from services.gateway.schema import records as schema
from services.settings import AuthSettings
from synod.codec import CODECS, JSON
from synod.contracts import PutImagesRequest, ScoreItem, ScoreRequest, UnreadableImage
from synod.errors import DeadlineExceeded, InvalidRequest, Overloaded, SynodError, Unavailable, UnknownImage
from tests.unit.services.gateway.conftest import Refuse
from tests.unit.synod.records import catalogues, errors, kept, parts, puts, requests, responses

NDJSON = "application/x-ndjson"
TOKENS = '[ann]\ntoken = "researcher-token-0123456789"\nscopes = []\n'
REFUSED = json.loads((Path(__file__).parents[3] / "contract" / "documents" / "refused.json").read_text())
# what the codec checks besides the shape
BEYOND_SHAPE = (
    r"entries for \d+ segments",
    r"bytes for shape",
    r"whole number from 0 to -?\d+$",
)
OPTIONAL = [
    *((name, ("items", 0)) for name in ("image", "prompt", "references", "reasoning", "geneval", "concept")),
    *((name, ()) for name in ("scorers", "ensemble", "weights", "timeout_ms", "request_id")),
    *((name, ("items", 0, "concept")) for name in ("class_word", "token", "about")),
    *((name, ("items", 0, "geneval", "include", 0)) for name in ("color", "position")),
    ("exclude", ("items", 0, "geneval")),
]
REQUIRED = [
    ("items", ()),
    ("kind", ("items", 0, "concept")),
    ("tag", ("items", 0, "geneval")),
    ("include", ("items", 0, "geneval")),
    ("class", ("items", 0, "geneval", "include", 0)),
    ("count", ("items", 0, "geneval", "include", 0)),
]
SMALL = {"items": [{"concept": {"kind": "person"}, "geneval": {"tag": "t", "include": [{"class": "cat", "count": 1}]}}]}
FEW = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ODD = st.sampled_from([None, True, -1, 0, 1, 2**70, 1.5, "", "x", "AAAA", "left of", [], [1], {}, {"digest": "x"}])


def allows(of: schema.Schema, body: object) -> bool:
    return jsonschema.Draft202012Validator(of).is_valid(body)


def taken(body: object) -> str | None:
    """Return why the codec refuses a request, or an image of it, which fails its item alone; None if it accepts all."""
    try:
        request = JSON.decode_request(json.dumps(body).encode())
    except SynodError as error:
        return error.message
    images = [image for item in request.items for image in (item.image, *item.references)]
    return next((image.why for image in images if isinstance(image, UnreadableImage)), None)


def at(body: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        body = body[key]
    return body


def places(body: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str | int]]:
    """Yield every (path of a container, key in it) of a tree."""
    for key in body if isinstance(body, dict) else range(len(body)) if isinstance(body, list) else ():
        yield path, key
        yield from places(body[key], (*path, key))


@pytest.mark.parametrize(
    ("records", "encode", "of"),
    [
        (requests, JSON.encode_request, schema.REQUEST),
        (puts, JSON.encode_put, schema.PUT),
        (responses, JSON.encode_response, schema.RESPONSE),
        (parts, JSON.encode_part, schema.PART),
        (errors, JSON.encode_error, schema.FAILED),
        (catalogues, JSON.encode_catalogue, schema.CATALOGUE),
        (kept, JSON.encode_digests, schema.DIGESTS),
    ],
    ids=["request", "put", "response", "part", "error", "catalogue", "digests"],
)
@FEW
@given(st.data())
def test_written_messages_validate(records: Any, encode: Any, of: schema.Schema, data: st.DataObject) -> None:
    jsonschema.Draft202012Validator(of).validate(json.loads(encode(data.draw(records))))


def test_unreadable_image_is_refused_by_schema_and_codec() -> None:
    body = {"items": [{"references": ["x"]}], "scorers": []}
    assert not allows(schema.REQUEST, body)
    assert "base64" in (taken(body) or "")


@FEW
@given(requests, st.data(), ODD)
def test_mutated_request_is_read_if_the_schema_allows_it(request: Any, data: st.DataObject, odd: object) -> None:
    body = json.loads(JSON.encode_request(request))
    path, key = data.draw(st.sampled_from(list(places(body))))
    at(body, path)[key] = odd
    why = taken(body)
    if why is None:
        assert allows(schema.REQUEST, body), body
    elif allows(schema.REQUEST, body):
        assert any(re.search(beyond, why) for beyond in BEYOND_SHAPE), why


@pytest.mark.parametrize("case", REFUSED, ids=[case["why"] for case in REFUSED])
def test_schema_refuses_what_the_codec_refuses(case: dict[str, Any]) -> None:
    why = taken(case["body"])
    assert why is not None
    beyond = any(re.search(pattern, why) for pattern in BEYOND_SHAPE)
    assert beyond or not allows(schema.REQUEST, case["body"])


@pytest.mark.parametrize(("name", "path"), [*OPTIONAL, *REQUIRED], ids=lambda one: str(one))
def test_null_equals_absent(name: str, path: tuple[str | int, ...]) -> None:
    body = copy.deepcopy(SMALL)
    at(body, path)[name] = None
    optional = (name, path) in OPTIONAL
    assert allows(schema.REQUEST, body) == optional
    assert (taken(body) is None) == optional


def test_every_schema_is_valid() -> None:
    for of in (schema.REQUEST, schema.PUT, schema.RESPONSE, schema.PART, schema.FAILED, schema.CATALOGUE):
        jsonschema.Draft202012Validator.check_schema(of)


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app.build(gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


async def document(http: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await http.get("/openapi.json")).json()
    return found


async def test_every_documented_type_is_served(http: httpx.AsyncClient) -> None:
    image = np.full((2, 2, 3), 9, np.uint8)
    written = {
        "/v1/score": lambda codec: codec.encode_request(ScoreRequest((ScoreItem(image),), ("a",))),
        "/v1/images": lambda codec: codec.encode_put(PutImagesRequest((image,))),
    }
    read = {
        "/v1/score": lambda codec, content: codec.decode_response(content).results[0].scores["a"],
        "/v1/images": lambda codec, content: codec.decode_digests(content).digests[0],
        "/v1/scorers": lambda codec, content: codec.decode_catalogue(content).scorers[0].name,
    }
    paths = (await document(http))["paths"]
    for path, method in (("/v1/score", "POST"), ("/v1/images", "PUT"), ("/v1/scorers", "GET")):
        operation = paths[path][method.lower()]
        takes = list(operation.get("requestBody", {}).get("content", {JSON.content_type: None}))
        gives = list(operation["responses"]["200"]["content"])
        assert set(takes) >= set(written and CODECS if path in written else [])
        assert set(gives) - {NDJSON} == set(CODECS)
        for sent in takes:
            body = written[path](CODECS[sent]) if path in written else None
            for accept in gives:
                headers = {"content-type": sent, "accept": accept}
                answer = await http.request(method, path, content=body, headers=headers)
                assert (answer.status_code, answer.headers["content-type"]) == (200, accept)
                if accept == NDJSON:
                    for line in answer.text.splitlines():
                        jsonschema.validate(json.loads(line), schema.PART)
                else:
                    assert read[path](CODECS[accept], answer.content)


WHOLE = (  # errors of a whole request; the others are outcomes of items
    SynodError,
    InvalidRequest,
    *InvalidRequest.__subclasses__(),
    UnknownImage,
    Unavailable,
    Overloaded,
    DeadlineExceeded,
)


@pytest.mark.parametrize("kind", WHOLE, ids=lambda kind: kind.code)
async def test_every_error_status_is_documented(
    http: httpx.AsyncClient, refuse: Refuse, kind: type[SynodError]
) -> None:
    digests = {"digests": ["blake2b-256:" + "0" * 64]} if kind is UnknownImage else {}
    refuse(kind("why", retry_after_s=2.0, **digests))
    answers = (await document(http))["paths"]["/v1/score"]["post"]["responses"]
    body = json.dumps({"items": [{}], "scorers": ["a"]}).encode()
    answer = await http.post("/v1/score", content=body, headers={"content-type": JSON.content_type})
    documented = answers[str(answer.status_code)]
    assert set(documented["content"]) == set(CODECS)
    jsonschema.validate(answer.json(), documented["content"][JSON.content_type]["schema"])
    fields = {"code": kind.code, "retryable": kind.retryable, "message": "why", "retry_after_s": 2.0}
    assert answer.json()["error"] == fields | digests
    for header in ("retry-after", "www-authenticate", "x-synod-request-id"):
        assert (header in answer.headers) == (header in documented["headers"]), header


async def test_example_responses_are_valid(http: httpx.AsyncClient) -> None:
    answers = (await document(http))["paths"]["/v1/score"]["post"]["responses"]
    lines = answers["200"]["content"][NDJSON]["example"].splitlines()
    assert [list(json.loads(line))[1] for line in lines] == ["scored", "rewards"]
    for line in lines:
        assert JSON.decode_part(line.encode())
        jsonschema.validate(json.loads(line), schema.PART)
    for status in ("409", "429"):
        example = answers[status]["content"][JSON.content_type]["example"]
        jsonschema.validate(example, schema.FAILED)
        assert JSON.decode_error(json.dumps(example).encode()).http_status == int(status)


async def test_token_is_needed_where_the_document_says(gateway: Gateway) -> None:
    authenticator = auth.load(AuthSettings(tokens_env="T"), {"T": TOKENS})
    transport = httpx.ASGITransport(app.build(gateway, authenticator, metrics_need_token=True))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as guarded:
        found = await document(guarded)
        assert found["components"]["securitySchemes"]["bearer"] == {
            "type": "http",
            "scheme": "bearer",
            "description": "A token of the service (docs/operations.md)",
        }
        bearer = {"authorization": "Bearer researcher-token-0123456789"}
        for path, methods in found["paths"].items():
            for method, operation in methods.items():
                stranger = await guarded.request(method, path)
                known = await guarded.request(method, path, headers=bearer)  # a token without scopes
                secured = {"bearer": []} in operation.get("security", [])
                assert (stranger.status_code == 401) == (known.status_code == 403) == secured, path
                assert not secured or {"401", "403"} <= set(operation["responses"])
