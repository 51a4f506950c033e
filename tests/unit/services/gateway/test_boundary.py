"""Equal requests leave equal counters, access records and spans, whatever the transport and the outcome."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import uvicorn

from services.backends import ScorerSpec, Staged
from services.gateway import app, auth, fanout
from services.gateway.core import Gateway
from services.gateway.rpc_server import RpcServer
from services.observability import access_log, metrics, tracing
from services.settings import AuthSettings, CompatSettings, LimitSettings, TracingSettings
from synod.codec import JSON, MSGPACK, PROTOBUF
from synod.contracts import Origin, ScoreItem, ScoreRequest
from synod.errors import Overloaded
from synod.images import encode_png
from synod.protobuf import SERVICE
from tests.collector import Collector, collecting
from tests.unit.services.gateway.conftest import SteeredBackend

TOKEN = "a-token-of-the-trainer"
IMAGES = [encode_png(np.full((2, 2, 3), level, np.uint8)) for level in range(9)]
CALL = {"queue": {}, "call": {}}


class Backend(SteeredBackend):
    """Its scores may be cached. `failure` is raised when a request stages its items."""

    failure: Exception | None = None

    @property
    def specs(self) -> Mapping[str, ScorerSpec]:
        return {name: replace(spec, origin=Origin("m", "p")) for name, spec in super().specs.items()}

    async def stage(self, items: tuple[ScoreItem, ...], scorers: int) -> Staged:
        if self.failure is not None:
            raise self.failure
        return Staged(items)


@dataclass
class Transport:
    """`send(body, token, traceparent)` sends a request and reads the whole response, errors included."""

    route: str
    span: str
    encode: Callable[[ScoreRequest], bytes]
    send: Callable[[bytes, str, str], Awaitable[Any]]


def unirl_body(request: ScoreRequest) -> bytes:
    turns = [{"text": one.prompt, "image_b64": b64encode(one.image).decode()} for one in request.items]  # type: ignore[arg-type]
    requests = [{"history": [turn], "required_rewards": ["a"], "metadata": None} for turn in turns]
    return json.dumps({"protocol_version": "1", "requests": requests}).encode()


def openrlhf_body(request: ScoreRequest) -> bytes:
    queries = [{"image": b64encode(one.image).decode()} for one in request.items]  # type: ignore[arg-type]
    return json.dumps({"query": queries, "prompts": [one.prompt for one in request.items], "labels": None}).encode()


def request(*indexes: int) -> ScoreRequest:
    return ScoreRequest(tuple(ScoreItem(IMAGES[i], "a prompt") for i in indexes), ("a",))


@dataclass
class Service:
    """A gateway with an HTTP and a gRPC port, a trace collector and an access log."""

    gateway: Gateway
    backend: Backend
    transports: dict[str, Transport]
    collector: Collector
    log: Path

    async def observe(
        self, name: str, body: bytes, token: str = TOKEN, leave: Callable[[], bool] | None = None
    ) -> dict[str, Any]:
        """Return what one request left: its counters, access record and spans. `leave`: when to disconnect."""
        transport = self.transports[name]
        trace = f"{len(self.log.read_text().splitlines()) + 1:032x}"
        before, lines = counters(), len(self.log.read_text().splitlines())
        sending = asyncio.ensure_future(transport.send(body, token, f"00-{trace}-{'1' * 16}-01"))
        async with asyncio.timeout(30):
            if leave is not None:
                while not leave():
                    await asyncio.sleep(0.005)
                await asyncio.sleep(0.05)  # the first part arrives
                sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
            while len(self.log.read_text().splitlines()) == lines:
                await asyncio.sleep(0.005)
        counted = {key: value - before.get(key, 0.0) for key, value in counters().items() if value != before.get(key)}
        record = json.loads(self.log.read_text().splitlines()[-1])
        assert record.pop("trace_id") == trace
        assert record.pop("request_id")
        assert record.pop("ms") >= 0
        del record["time"]
        expected = {f"{transport.route} {record['outcome']}": 1, f"{transport.route} seconds": 1}
        assert (counted, record.pop("route")) == (expected, transport.route)
        return {"record": record, "trace": trace}

    async def observe_all(self, encode: Callable[[Transport], bytes], **options: Any) -> dict[str, Any]:
        """Return the record and the span names of one request by transport."""
        observed = {name: await self.observe(name, encode(one), **options) for name, one in self.transports.items()}
        tracing.stop()
        for name, one in observed.items():
            spans = [s for s in self.collector.named(self.transports[name].span) if s.trace == one["trace"]]
            one["outcome of span"] = [span.attributes["synod.outcome"] for span in spans]
            one["spans"] = self.collector.tree(spans[0].id)
            del one["trace"]
        return observed


def counters() -> dict[str, float]:
    found = {}
    for family in metrics.REGISTRY.collect():
        for s in family.samples:
            if s.name == "synod_requests_total":
                found[f"{s.labels['route']} {s.labels['outcome']}"] = s.value
            elif s.name == "synod_request_seconds_count":
                found[f"{s.labels['route']} seconds"] = s.value
            elif s.name == "synod_open_requests":
                found["open"] = s.value
    return found


def alike(service: Service, outcome: str, spans: dict[str, Any], **record: Any) -> dict[str, Any]:
    """Every transport's observation, for `observe_all` to be equal to."""
    one = {"record": record | {"outcome": outcome}, "outcome of span": [outcome], "spans": spans}
    return dict.fromkeys(service.transports, one)


ASKED = {"caller": "run-7", "scorers": ["a"], "ensemble": None}


@pytest.fixture
async def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.setattr(tracing, "STOP_TIMEOUT_S", 60.0)
    monkeypatch.setattr(fanout, "KEEP_AFTER_DISCONNECT_S", 0.0)
    backend = Backend()
    gateway = Gateway(backend, {}, LimitSettings(max_body_bytes=2**16, max_items=8))
    authenticator = auth.load(AuthSettings(tokens_env="T"), {"T": f'[run-7]\ntoken = "{TOKEN}"\n'})
    application = app.build(gateway, authenticator, compat=CompatSettings(unirl=True, openrlhf="a"))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application, log_level="error", ws="none"))
    serving = asyncio.create_task(server.serve([listener]))
    rpc = RpcServer(gateway, 2**16, authenticator)
    port = await rpc.start("127.0.0.1:0")
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    def post(path: str, kind: str, accept: str | None = None) -> Callable[[bytes, str, str], Awaitable[Any]]:
        async def send(body: bytes, token: str, traceparent: str) -> Any:
            headers = {"content-type": kind, "authorization": f"Bearer {token}", "traceparent": traceparent}
            return await client.post(path, content=body, headers=headers | {"accept": accept or kind})

        return send

    async def unary(body: bytes, token: str, traceparent: str) -> None:
        metadata = (("authorization", f"Bearer {token}"), ("traceparent", traceparent))
        with suppress(grpc.aio.AioRpcError):
            await channel.unary_unary(f"/{SERVICE}/Score")(body, metadata=metadata)

    async def stream(body: bytes, token: str, traceparent: str) -> None:
        metadata = (("authorization", f"Bearer {token}"), ("traceparent", traceparent))
        call = channel.stream_stream(f"/{SERVICE}/ScoreStream")(iter([body]), metadata=metadata)
        with suppress(grpc.aio.AioRpcError):
            try:
                async for _ in call:
                    pass
            finally:
                call.cancel()

    def rest(codec: Any, accept: str | None = None) -> Transport:
        sender = post("/v1/score", codec.content_type, accept)
        return Transport("/v1/score", "POST /v1/score", codec.encode_request, sender)

    transports = {
        "json": rest(JSON),
        "msgpack": rest(MSGPACK),
        "ndjson": rest(JSON, "application/x-ndjson"),
        "gRPC": Transport("Score", "Score", PROTOBUF.encode_request, unary),
        "gRPC stream": Transport("ScoreStream", "request", PROTOBUF.encode_stream_request, stream),
        "UniRL": Transport("/score", "POST /score", unirl_body, post("/score", "application/json")),
        "OpenRLHF": Transport("/openrlhf", "POST /openrlhf", openrlhf_body, post("/openrlhf", "application/json")),
    }
    log = tmp_path / "access.jsonl"
    access_log.open_log(log)
    with collecting() as collector:
        tracing.start(TracingSettings(endpoint=collector.url), "a-test")
        yield Service(gateway, backend, transports, collector, log)
        tracing.stop()
    for handler in access_log.log.handlers:
        handler.close()
    access_log.log.handlers = []
    access_log.log.setLevel(logging.CRITICAL)
    await client.aclose()
    await channel.close()
    await rpc.stop()
    server.should_exit = True
    await serving


async def cache_first_item(service: Service) -> None:
    """Score item 0, so that a later request has a first part at once."""
    await service.gateway.score(request(0))


async def test_success_is_recorded_alike(service: Service) -> None:
    numbers = iter(range(9))
    observed = await service.observe_all(lambda transport: transport.encode(request(next(numbers))))
    assert observed == alike(service, "ok", {"decode": {}, "scorer a": CALL}, **ASKED, items=1)


async def test_refusal_is_recorded_alike(service: Service) -> None:
    """The request has 9 items, the limit is 8."""
    observed = await service.observe_all(lambda transport: transport.encode(request(*range(9))))
    assert observed == alike(service, "payload_too_large", {}, **ASKED, items=9)


async def test_invalid_body_is_recorded_alike(service: Service) -> None:
    observed = await service.observe_all(lambda transport: b"\xff")
    assert observed == alike(service, "invalid_request", {}, caller="run-7")


async def test_unknown_token_is_recorded_alike(service: Service) -> None:
    """A gRPC stream is refused as a call, before it has requests."""
    service.transports["gRPC stream"].span = "ScoreStream"
    observed = await service.observe_all(lambda transport: transport.encode(request(0)), token="an-unknown-token-0")
    assert observed == alike(service, "unauthenticated", {})


@pytest.mark.parametrize(("error", "outcome"), [(Overloaded("full"), "overloaded"), (KeyError("bug"), "internal")])
async def test_failure_after_first_part_is_recorded_alike(service: Service, error: Exception, outcome: str) -> None:
    await cache_first_item(service)
    service.backend.failure = error
    observed = await service.observe_all(lambda transport: transport.encode(request(0, 1)))
    assert observed == alike(service, outcome, {"decode": {}}, **ASKED, items=2)


async def test_disconnect_after_first_part_is_recorded_alike(service: Service) -> None:
    await cache_first_item(service)
    called = len(service.backend.calls)

    def encode(transport: Transport) -> bytes:
        nonlocal called
        called = len(service.backend.calls)
        service.backend.plan["a"] = [asyncio.Event()]
        return transport.encode(request(0, 1))

    observed = await service.observe_all(encode, leave=lambda: len(service.backend.calls) > called)
    assert observed == alike(service, "client_gone", {"decode": {}, "scorer a": CALL}, **ASKED, items=2)
    assert service.backend.cancelled == ["a"] * len(service.transports), "work goes on for a caller that has gone"
