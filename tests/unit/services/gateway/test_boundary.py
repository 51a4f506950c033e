"""Every transport moves the same request counters: one request, one outcome, whatever happens to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import uvicorn

from services.gateway import app
from services.gateway.core import Gateway
from services.gateway.rpc import RpcServer
from services.observability import metrics
from synod.codec import JSON, MSGPACK, PROTOBUF
from synod.contracts import Part, Score, ScoredItem, ScoreItem, ScoreRequest
from synod.errors import ReplicaLost
from synod.protobuf import SERVICE

ITEM = ScoreItem(np.full((2, 2, 3), 51, np.uint8), prompt="a")
GOOD, UNKNOWN = ScoreRequest((ITEM,), ("a", "b")), ScoreRequest((ITEM,), ("nobody",))
Send = Callable[[ScoreRequest], Awaitable[None]]
TRANSPORTS = ("json", "msgpack", "ndjson", "Score", "ScoreStream")


@pytest.fixture
async def senders(gateway: Gateway) -> AsyncIterator[dict[str, Send]]:
    """By transport: send a request and read its whole answer, errors included."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app.build(gateway), log_level="error", ws="none"))
    serving = asyncio.create_task(server.serve([listener]))
    rpc = RpcServer(gateway, 2**20)
    port = await rpc.start("127.0.0.1:0")
    http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    def over_http(codec: Any, accept: str) -> Send:
        async def send(request: ScoreRequest) -> None:
            headers = {"content-type": codec.content_type, "accept": accept}
            await http.post("/v1/score", content=codec.encode_request(request), headers=headers)

        return send

    async def unary(request: ScoreRequest) -> None:
        with suppress(grpc.aio.AioRpcError):
            await channel.unary_unary(f"/{SERVICE}/Score")(PROTOBUF.encode_request(request))

    async def stream(request: ScoreRequest) -> None:
        call = channel.stream_stream(f"/{SERVICE}/ScoreStream")(iter([PROTOBUF.encode_stream_request(request)]))
        try:
            async for _ in call:
                pass
        finally:
            call.cancel()

    yield {
        "json": over_http(JSON, JSON.content_type),
        "msgpack": over_http(MSGPACK, MSGPACK.content_type),
        "ndjson": over_http(JSON, "application/x-ndjson"),
        "Score": unary,
        "ScoreStream": stream,
    }
    await http.aclose()
    await channel.close()
    await rpc.stop()
    server.should_exit = True
    await serving


def counted() -> dict[tuple[str, str], float]:
    """The requests by route and outcome."""
    samples = next(iter(metrics.REQUESTS.collect())).samples
    return {(s.labels["route"], s.labels["outcome"]): s.value for s in samples if s.name == "synod_requests_total"}


def route_of(transport: str) -> str:
    return transport if transport.startswith("Score") else "/v1/score"


def timed(route: str) -> float:
    return metrics.REGISTRY.get_sample_value("synod_request_seconds_count", {"route": route}) or 0.0


async def moved(send: Awaitable[None], route: str) -> dict[tuple[str, str], float]:
    """What one request adds to the counters; checks that it is timed once and no longer open."""
    before, timed_before, open_before = counted(), timed(route), metrics.OPEN_REQUESTS._value.get()
    await send
    async with asyncio.timeout(20):
        while (after := counted()) == before:
            await asyncio.sleep(0.005)
    assert timed(route) - timed_before == 1
    assert metrics.OPEN_REQUESTS._value.get() == open_before
    return {key: value - before.get(key, 0.0) for key, value in after.items() if value != before.get(key, 0.0)}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_answer_is_counted(senders: dict[str, Send], transport: str) -> None:
    route = route_of(transport)
    assert await moved(senders[transport](GOOD), route) == {(route, "ok"): 1}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_refusal_is_counted(senders: dict[str, Send], transport: str) -> None:
    route = route_of(transport)
    assert await moved(senders[transport](UNKNOWN), route) == {(route, "unknown_scorer"): 1}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("error", "outcome"), [(ReplicaLost("gone"), "replica_lost"), (KeyError("bug"), "internal")])
async def test_a_failure_in_the_middle_is_counted(
    senders: dict[str, Send],
    gateway: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    transport: str,
    error: Exception,
    outcome: str,
) -> None:
    async def parts(*arguments: Any) -> AsyncGenerator[Part]:
        yield ScoredItem("r", 0, "a", Score(0.5))
        raise error

    monkeypatch.setattr(gateway, "_parts", parts)
    route = route_of(transport)
    assert await moved(senders[transport](GOOD), route) == {(route, outcome): 1}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_that_leaves_is_counted(senders: dict[str, Send], backend: Any, transport: str) -> None:
    """'b' never ends. An answer in parts has begun by then: its first part is that of 'a'."""
    backend.plan["b"] = [asyncio.Event()]

    async def leave() -> None:
        sending = asyncio.ensure_future(senders[transport](GOOD))
        async with asyncio.timeout(20):
            while len(backend.calls) < 2:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)  # the first part is on its way
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending

    route = route_of(transport)
    assert await moved(leave(), route) == {(route, "client_gone"): 1}
