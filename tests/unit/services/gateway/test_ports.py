"""A gateway's own ports open with the application, are shared with the next gateway, and close."""

from __future__ import annotations

import asyncio
import socket

import httpx
import numpy as np
import pytest

from services.cluster.local import free_port
from services.gateway import app, auth
from services.gateway.core import Gateway
from services.gateway.ports import Ports
from services.settings import AuthSettings, ServerSettings
from synod.client import AsyncSynodClient
from synod.contracts import Score, ScoreItem, ScoreRequest
from synod.errors import Unauthenticated

TOKEN = "a-token-that-is-long-enough"
REQUEST = ScoreRequest((ScoreItem(np.full((2, 2, 3), 51, np.uint8)),), ("a",), request_id="r")


def test_ports_follow_the_settings() -> None:
    assert Ports.of(ServerSettings(port=81, grpc_port=82)) == Ports("127.0.0.1", 81, 82)
    assert Ports.of(ServerSettings(port=81, listen="proxy")) == Ports("127.0.0.1", None, None)


async def test_http_and_grpc_give_equal_responses_and_need_a_token(gateway: Gateway) -> None:
    authenticator = auth.load(AuthSettings(tokens_env="T"), {"T": f'[run]\ntoken = "{TOKEN}"'})
    ports = Ports("127.0.0.1", free_port(), free_port())
    built = app.build(gateway, authenticator, ports=ports)
    urls = f"http://127.0.0.1:{ports.http}", f"grpc://127.0.0.1:{ports.grpc}"
    async with built.router.lifespan_context(built):
        answers = []
        for url in urls:
            async with AsyncSynodClient(url, token=TOKEN, retries=0) as client:
                answers.append(await client.score(REQUEST))
            async with AsyncSynodClient(url, token=TOKEN[:-1], retries=0) as client:
                with pytest.raises(Unauthenticated):
                    await client.score(REQUEST)
    assert answers[0] == answers[1]
    assert isinstance(answers[0].results[0].scores["a"], Score)
    for port in (ports.http, ports.grpc):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_gateways_share_a_port(gateway: Gateway) -> None:
    ports = Ports("127.0.0.1", free_port())
    first, second = app.build(gateway, ports=ports), app.build(gateway, ports=ports)

    async def alive() -> int:
        async with httpx.AsyncClient() as http:
            return (await http.get(f"http://127.0.0.1:{ports.http}/healthz")).status_code

    async with second.router.lifespan_context(second):
        async with first.router.lifespan_context(first):
            assert {await alive() for _ in range(20)} == {200}
        assert {await alive() for _ in range(20)} == {200}


async def test_port_in_use_stops_the_start(gateway: Gateway) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        for ports in (Ports("127.0.0.1", taken), Ports("127.0.0.1", None, taken)):
            built = app.build(gateway, ports=ports)
            with pytest.raises((OSError, RuntimeError)):
                async with built.router.lifespan_context(built):
                    pytest.fail("it listens")
