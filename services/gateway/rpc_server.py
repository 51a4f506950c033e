"""Run the gRPC server of a gateway: reward service, health and reflection."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.gateway.auth import Authenticator
from services.gateway.core import Gateway
from services.gateway.rpc import RewardServicer, TokenInterceptor
from synod.protobuf import SERVICE

log = logging.getLogger("synod.gateway")
HEALTH_PERIOD_S: Final = 1.0
READY_PERIODS: Final = 5  # between questions while ready: asking Serve every second takes 1.8 % of a core
MAX_STREAMS: Final = 256  # calls of one connection; a client makes further ones wait
MAX_CALLS: Final = 1024  # of all connections; each may bring a body of max_body_bytes
KEEPALIVE_OPTIONS: Final = (  # pings as often as every 250 ms are accepted, with and without a call in progress
    ("grpc.http2.min_ping_interval_without_data_ms", 250),
    ("grpc.keepalive_permit_without_calls", 1),
)
COMPRESSION_OPTIONS: Final = (  # the handlers, which know the limits, run only after gRPC has inflated a message
    ("grpc.compression_enabled_algorithms_bitset", 1),  # identity alone: a compressed call ends as UNIMPLEMENTED
    ("grpc.per_message_decompression", 0),  # in any case, inflate nothing
)


class RpcServer:
    """The gRPC server of a gateway: the reward service, and health and reflection, which need no token."""

    def __init__(self, gateway: Gateway, max_body_bytes: int, authenticator: Authenticator | None = None) -> None:
        self._gateway = gateway
        sizes = (("grpc.max_receive_message_length", max_body_bytes), ("grpc.max_send_message_length", -1))
        streams = ("grpc.max_concurrent_streams", MAX_STREAMS)
        self._server = grpc.aio.server(
            interceptors=[TokenInterceptor(authenticator or Authenticator())],
            options=[*sizes, streams, *KEEPALIVE_OPTIONS, *COMPRESSION_OPTIONS],
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        self._health = health.aio.HealthServicer()
        add_to_server(RewardServicer(gateway), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self._watching: asyncio.Task[None] | None = None

    async def start(self, address: str) -> int:
        """Listen on "host:port" without TLS and return the port (0: any free one). Raises RuntimeError if taken."""
        port = self._server.add_insecure_port(address)
        await self._set_health()
        await self._server.start()
        self._watching = asyncio.create_task(self._watch())
        return port

    async def stop(self, grace_s: float = 0.0) -> None:
        """Accept no more calls, and end those in progress after `grace_s`."""
        if self._watching is not None:
            self._watching.cancel()
        await self._server.stop(grace_s)

    async def _watch(self) -> None:
        ready = False
        while True:
            await asyncio.sleep(HEALTH_PERIOD_S * (READY_PERIODS if ready else 1))
            ready = await self._set_health()

    async def _set_health(self) -> bool:
        """Report service "" as serving, and SERVICE if every scorer is ready, which is returned."""
        status = health_pb2.HealthCheckResponse
        try:
            ready = all(one.ready for one in (await self._gateway.backend.readiness()).values())
        except Exception:  # an error boundary: unknown counts as not ready
            log.exception("cannot find out whether the scorers are ready")
            ready = False
        await self._health.set("", status.SERVING)
        await self._health.set(SERVICE, status.SERVING if ready else status.NOT_SERVING)
        return ready


def add_to_server(servicer: RewardServicer, server: Any) -> None:
    """Register the service, like the generated function of this name, with handlers that work on bytes."""
    handlers: dict[str, Any] = {
        "Score": grpc.unary_unary_rpc_method_handler(servicer.score),
        "ScoreStream": grpc.stream_stream_rpc_method_handler(servicer.score_stream),
        "ListScorers": grpc.unary_unary_rpc_method_handler(servicer.list_scorers),
        "PutImages": grpc.unary_unary_rpc_method_handler(servicer.put_images),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
