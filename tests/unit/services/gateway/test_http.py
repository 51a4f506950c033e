"""HTTP on a real server: streamed parts, disconnects, tokens, uploads, headers."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
import uvicorn

from services.gateway import app, auth, fanout
from services.gateway.auth import Authenticator
from services.gateway.core import Gateway
from services.gateway.schema.examples import RED_PNG
from services.settings import AuthSettings
from synod.digest import digest_of
from synod.errors import Overloaded, UnknownImage
from synod.images import encode_png
from tests.outcomes import until
from tests.unit.services.gateway.conftest import Refuse

TRAINER, PROMETHEUS = "trainer-token-0123456789", "metrics-token-0123456789"
TOKENS = f'[run-7]\ntoken = "{TRAINER}"\n[prometheus]\ntoken = "{PROMETHEUS}"\nscopes = ["metrics"]\n'
BODY = {"items": [{"image": RED_PNG}], "scorers": ["a", "b"], "request_id": "r"}
NDJSON = {"accept": "application/x-ndjson"}


@asynccontextmanager
async def serving(
    gateway: Gateway, authenticator: Authenticator | None = None, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """Run uvicorn on a loopback port until the test ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app.build(gateway, authenticator, **options), log_level="error", ws="none")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listener]))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
        yield client
    server.should_exit = True
    await task


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(gateway) as client:
        yield client


@pytest.fixture
async def guarded(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    authenticator = auth.load(AuthSettings(tokens_env="T"), {"T": TOKENS})
    async with serving(gateway, authenticator, metrics_need_token=True) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def test_parts_arrive_as_each_scorer_ends(http: httpx.AsyncClient, backend: Any) -> None:
    """'b' ends only after the part of 'a' has been read."""
    read = asyncio.Event()
    backend.plan["b"] = [read]
    async with http.stream("POST", "/v1/score", json=BODY, headers=NDJSON) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
        assert answer.headers["x-synod-request-id"] == "r"
        lines = answer.aiter_lines()
        first = json.loads(await anext(lines))
        assert (first["request_id"], first["scored"]["index"], first["scored"]["scorer"]) == ("r", 0, "a")
        assert first["scored"]["outcome"]["value"] == pytest.approx(1 / 3)  # the mean of a red image
        read.set()
        rest = [json.loads(line) async for line in lines]
    assert [part.get("scored", {}).get("scorer") for part in rest] == ["b", None]
    assert rest[-1] == {"request_id": "r", "rewards": [None]}


async def test_invalid_request_has_its_status_in_a_stream_too(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/score", json=BODY | {"scorers": ["nobody"]}, headers=NDJSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_scorer")


async def test_error_after_first_part_is_the_last_line(
    http: httpx.AsyncClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = gateway.stream
    for raised, code in ((Overloaded("full"), "overloaded"), (RuntimeError("secret"), "internal")):

        async def broken(*args: Any, raised: Exception = raised) -> AsyncIterator[Any]:
            async for part in stream(*args):
                yield part
                raise raised

        monkeypatch.setattr(gateway, "stream", broken)
        answer = await http.post("/v1/score", json=BODY, headers=NDJSON)
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert [list(line)[1] for line in lines] == ["scored", "error"]
        assert lines[-1]["error"]["code"] == code
        assert "secret" not in answer.text


@pytest.mark.parametrize("headers", [{}, NDJSON])
async def test_disconnect_cancels_the_work(
    http: httpx.AsyncClient, backend: Any, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fanout, "KEEP_AFTER_DISCONNECT_S", 3600.0
    )  # these scorers have no origin, so their work does not linger
    backend.plan["a"] = backend.plan["b"] = [3600.0, 3600.0]
    call = asyncio.create_task(http.post("/v1/score", json=BODY, headers=headers))
    await until(lambda: len(backend.calls) == 2)
    call.cancel()
    await until(lambda: sorted(backend.cancelled) == ["a", "b"])


@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
async def test_images_are_uploaded_once_and_named_by_digest(http: httpx.AsyncClient, kind: str) -> None:
    png, pixels = encode_png(np.full((4, 4, 3), 9, np.uint8)), np.full((2, 3, 3), 5, np.uint8)
    if kind == "application/json":
        import base64

        raw = {"data": base64.b64encode(pixels.tobytes()).decode(), "shape": [2, 3, 3]}
        body = json.dumps({"images": [base64.b64encode(png).decode(), raw]}).encode()
    else:
        body = msgpack.packb({"images": [png, {"data": pixels.tobytes(), "shape": [2, 3, 3]}]})
    answer = await http.put("/v1/images", content=body, headers={"content-type": kind, "accept": "application/json"})
    assert answer.json() == {"digests": [digest_of(png), digest_of(pixels)]}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"images": ["http://example.org/cat.png"]}', 400, "invalid_request"),
        (b'{"images": []}', 400, "invalid_request"),
        (b'{"photos": []}', 400, "invalid_request"),
        (b"{", 400, "invalid_request"),
        (b'{"images": [""' + b', ""' * 8 + b"]}", 413, "payload_too_large"),
        (b" " * 4097, 413, "payload_too_large"),
    ],
)
async def test_bad_uploads_are_refused(http: httpx.AsyncClient, body: bytes, status: int, code: str) -> None:
    answer = await http.put("/v1/images", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_no_image_is_fetched(http: httpx.AsyncClient, backend: Any) -> None:
    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.append(1)
        writer.close()

    visits: list[int] = []
    async with await asyncio.start_server(visit, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/cat.png"
        for item in ({"image": url}, {"image": RED_PNG, "references": [url]}):
            answer = await http.post("/v1/score", json={"items": [item], "scorers": ["a"]})
            (result,) = answer.json()["results"]
            assert result["scores"]["a"]["error"]["code"] == "bad_image"
    assert visits == []


async def test_refusal_has_retry_after(http: httpx.AsyncClient, refuse: Refuse) -> None:
    for raised, status, header in (
        (Overloaded("full", retry_after_s=2.1), 429, "3"),
        (Overloaded("full"), 429, "1"),
        (UnknownImage("put it"), 409, "1"),
    ):
        refuse(raised)
        answer = await http.post("/v1/score", json=BODY)
        assert (answer.status_code, answer.headers["retry-after"]) == (status, header)


async def test_only_health_and_documents_need_no_token(guarded: httpx.AsyncClient) -> None:
    for method, path in (("POST", "/v1/score"), ("PUT", "/v1/images"), ("GET", "/v1/scorers"), ("GET", "/metrics")):
        for headers in ({}, bearer("x" * 24)):
            answer = await guarded.request(method, path, headers=headers, json=BODY)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated"), path
            assert answer.headers["www-authenticate"] == 'Bearer realm="synod"'
    for path in ("/v1/health", "/healthz", "/docs", "/openapi.json"):
        assert (await guarded.get(path)).status_code == 200
    assert (await guarded.get("/readyz")).status_code == 503  # needs no token; not ready


async def test_token_allows_its_scopes(guarded: httpx.AsyncClient, backend: Any) -> None:
    assert (await guarded.post("/v1/score", json=BODY, headers=bearer(TRAINER))).status_code == 200
    assert (await guarded.get("/v1/scorers", headers=bearer(TRAINER))).status_code == 200
    assert (await guarded.get("/metrics", headers=bearer(PROMETHEUS))).status_code == 200
    for path, token in (("/metrics", TRAINER), ("/v1/scorers", PROMETHEUS)):
        answer = await guarded.get(path, headers=bearer(token))
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")
        assert "insufficient_scope" in answer.headers["www-authenticate"]
    assert len(backend.calls) == 2


async def test_an_unauthenticated_body_is_not_read(guarded: httpx.AsyncClient) -> None:
    """The body has 5 kB, over the limit of 4096, but is not read."""
    assert (await guarded.post("/v1/score", content=b" " * 5000)).status_code == 401


async def test_metrics_need_no_token_by_default(http: httpx.AsyncClient) -> None:
    assert (await http.get("/metrics")).status_code == 200


async def test_pages_load_nothing_and_cannot_be_framed(http: httpx.AsyncClient) -> None:
    headers = (await http.get("/docs")).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
