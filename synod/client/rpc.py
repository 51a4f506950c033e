"""The blocking and the asyncio transport over gRPC, without stubs: `synod.codec` encodes the bodies."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import grpc

from synod.client.core import Call, Operation, RawResponse
from synod.client.headers import trace_headers
from synod.client.proxy import find_proxy
from synod.client.transport import CONNECT_S, MAX_RESPONSE_BYTES
from synod.codec import PROTOBUF
from synod.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    PermissionDenied,
    SynodError,
    Unauthenticated,
    Unavailable,
)
from synod.protobuf import ERROR_KEY, SERVICE

_METHODS: Final[Mapping[Operation, str]] = {
    "score": f"/{SERVICE}/Score",
    "stream": f"/{SERVICE}/ScoreStream",
    "put_images": f"/{SERVICE}/PutImages",
    "scorers": f"/{SERVICE}/ListScorers",
    "ready": "/grpc.health.v1.Health/Check",
}
_HEALTH_OF_SERVICE: Final = b"\n" + bytes([len(SERVICE)]) + SERVICE.encode()  # HealthCheckRequest: field 1 is a name
_SERVING: Final = b"\x08\x01"  # HealthCheckResponse: field 1 is 1
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 2**20),  # an error may list thousands of digests
    ("grpc.absolute_max_metadata_size", 2**20),
    ("grpc.enable_retries", 0),  # the flows retry
    # gRPC would pause for up to two minutes between attempts to connect, and report a service late that has recovered.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_S * 1000)),  # not a pause: how long one attempt may take
)
_BY_CODE: Final[Mapping[grpc.StatusCode, type[SynodError]]] = {  # for errors that the service did not send
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.INTERNAL: Unavailable,  # the network's: the service's own internal error is in the metadata
    grpc.StatusCode.UNKNOWN: Unavailable,
}


class _Rpc:
    """What both transports share: a call's metadata and options, and a status as an error."""

    codec = PROTOBUF
    part_codec = PROTOBUF

    def __init__(self, url: str, token: str | None, library: Any) -> None:
        self._url = url
        self._proxy = find_proxy(url)
        by_proxy = ("grpc.enable_http_proxy", 0) if self._proxy is None else ("grpc.http_proxy", self._proxy.url)
        target, options = urlsplit(url).netloc, (*_OPTIONS, by_proxy)
        self._channel: Any = (
            library.secure_channel(target, grpc.ssl_channel_credentials(), options=options)
            if url.startswith("grpcs:")
            else library.insecure_channel(target, options=options)
        )
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def _options(self, call: Call) -> dict[str, Any]:
        return {"timeout": call.timeout_s, "metadata": (*self._metadata, *trace_headers().items())}

    def _unary(self, call: Call) -> Any:
        body = _HEALTH_OF_SERVICE if call.operation == "ready" else call.body
        return self._channel.unary_unary(_METHODS[call.operation])(body, **self._options(call))

    def _raw(self, call: Call, body: bytes) -> RawResponse:
        if call.operation != "ready":
            return RawResponse(200, PROTOBUF.content_type, body)
        waiting = {"scorers": {SERVICE: {"ready": False, "reason": "not serving"}}}
        return RawResponse(200 if body == _SERVING else 503, "application/json", json.dumps(waiting).encode())

    def _error(self, call: Call, error: Any) -> SynodError:
        """Return the error of a grpc.RpcError (also a grpc.Call): the service's own, or else the status's."""
        for key, value in error.trailing_metadata() or ():
            if key == ERROR_KEY:
                with contextlib.suppress(InvalidRequest):  # another server's metadata
                    return PROTOBUF.decode_error(value)
        code, why = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE and self._proxy is not None:
            return Unavailable(
                f"{self._url} cannot be reached through the proxy {self._proxy.setting} ({why}); "
                "check the proxy, or add the service's host to no_proxy"
            )
        if code is grpc.StatusCode.UNAVAILABLE:
            return Unavailable(f"no service responds at {self._url} ({why}); start one, or correct the URL")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"{self._url} did not answer {_METHODS[call.operation]} within {call.timeout_s:g} s; allow more time"
            )
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in why:
            return PayloadTooLarge(f"{self._url}: {why}; send fewer items in a request")
        return _BY_CODE.get(code, SynodError)(f"{self._url} answered {code.name}: {why}")


class RpcTransport(_Rpc):
    """Send calls over gRPC; blocking, thread-safe."""

    def __init__(self, url: str, token: str | None) -> None:
        super().__init__(url, token, grpc)

    def send(self, call: Call) -> RawResponse:
        try:
            return self._raw(call, self._unary(call))
        except grpc.RpcError as error:
            raise self._error(call, error) from None

    def stream(self, call: Call) -> Generator[bytes]:
        parts = self._channel.stream_stream(_METHODS[call.operation])(iter([call.body]), **self._options(call))
        try:
            yield from parts
        except grpc.RpcError as error:
            raise self._error(call, error) from None
        finally:
            parts.cancel()

    def close(self) -> None:
        self._channel.close()


class AsyncRpcTransport(_Rpc):
    """Send calls over gRPC from one event loop."""

    def __init__(self, url: str, token: str | None) -> None:
        super().__init__(url, token, grpc.aio)

    async def send(self, call: Call) -> RawResponse:
        try:
            return self._raw(call, await self._unary(call))
        except grpc.RpcError as error:
            raise self._error(call, error) from None

    async def stream(self, call: Call) -> AsyncGenerator[bytes]:
        parts = self._channel.stream_stream(_METHODS[call.operation])(iter([call.body]), **self._options(call))
        try:
            async for part in parts:
                yield part
        except grpc.RpcError as error:
            raise self._error(call, error) from None
        finally:
            parts.cancel()

    async def close(self) -> None:
        await self._channel.close()
