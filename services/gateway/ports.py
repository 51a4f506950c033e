"""Listen on a gateway's own HTTP and gRPC ports, in its event loop; the gateways of a node share them.

Serve's proxy would copy each body through one more process. With `listen = "proxy"` it serves HTTP instead: it can
reach gateways on other nodes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import uvicorn
from fastapi import FastAPI

from services.gateway.auth import Authenticator
from services.gateway.core import Gateway
from services.gateway.rpc_server import RpcServer
from services.settings import ServerSettings

BACKLOG: Final = 2048
KEEP_ALIVE_S: Final = 75  # longer than clients keep idle connections, so that they close first
GRACE_S: Final = 5


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports that a gateway listens on; None: it does not."""

    host: str = "127.0.0.1"
    http: int | None = None
    grpc: int | None = None

    @classmethod
    def of(cls, server: ServerSettings) -> Ports:
        return cls(server.host, server.port if server.listen == "gateway" else None, server.grpc_port)


@asynccontextmanager
async def serving(ports: Ports, app: FastAPI, gateway: Gateway, authenticator: Authenticator) -> AsyncIterator[None]:
    """Listen inside the block; requests in progress then have GRACE_S to end. Raises OSError or RuntimeError for a
    port in use."""
    http = None if ports.http is None else _Http(app, ports.host, ports.http)
    grpc = None if ports.grpc is None else RpcServer(gateway, gateway.limits.max_body_bytes, authenticator)
    try:
        if http is not None:
            await http.start()
        if grpc is not None:
            await grpc.start(_address(ports.host, ports.grpc))
        yield
    finally:
        if http is not None:
            await http.stop()
        if grpc is not None:
            await grpc.stop(GRACE_S)


class _Http(uvicorn.Server):
    """Uvicorn in an event loop that runs already; it leaves signals, the app's lifespan and logging alone."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._socket = _shared(host, port)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self.serve([self._socket]))
        while not self.started:
            await asyncio.wait([self._task], timeout=0.01)
            if self._task.done():
                self._task.result()
                raise RuntimeError("the HTTP server stopped before it started")

    async def stop(self) -> None:
        self.should_exit = True
        if self._task is not None:
            await asyncio.wait([self._task])
        self._socket.close()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process."""
        yield


def _shared(host: str, port: int) -> socket.socket:
    """Return a bound socket; other gateways may bind its address too, and the kernel distributes connections."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def _address(host: str, port: int | None) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
