"""Both transports over gRPC. Bodies go as `synod.codec` serialised them: no stub, no message object."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import grpc

from synod.client import trace
from synod.client.core import Answer, Call, Operation
from synod.client.proxy import find_proxy
from synod.client.transport import MAX_ANSWER_BYTES
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
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 2**20),  # of an error that lists thousands of digests
    ("grpc.absolute_max_metadata_size", 2**20),
    ("grpc.enable_retries", 0),  # ours know what may be asked again
)
_BY_CODE: Final[Mapping[grpc.StatusCode, type[SynodError]]] = {  # for errors that are not the service's own
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.INTERNAL: Unavailable,  # the way's: a service's own internal error says so in the metadata
    grpc.StatusCode.UNKNOWN: Unavailable,
}


class _Rpc:
    """What both have in common: how a call is addressed, and a status becomes an error."""

    codec = PROTOBUF
    part_codec = PROTOBUF

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url
        self._target = urlsplit(url).netloc
        self._proxy = find_proxy(url)
        by_proxy = ("grpc.enable_http_proxy", 0) if self._proxy is None else ("grpc.http_proxy", self._proxy.url)
        self._channel_options = (*_OPTIONS, by_proxy)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def _options(self, call: Call) -> dict[str, Any]:
        return {"timeout": call.timeout_s, "metadata": (*self._metadata, *trace.headers().items())}

    def _answer(self, call: Call, body: bytes) -> Answer:
        if call.operation != "ready":
            return Answer(200, PROTOBUF.content_type, body)
        waiting = {"scorers": {SERVICE: {"ready": False, "reason": "not serving"}}}
        return Answer(200 if body == _SERVING else 503, "application/json", json.dumps(waiting).encode())

    def _error(self, call: Call, error: Any) -> SynodError:
        """Of a grpc.RpcError, which is a grpc.Call too: the service's own if it sent one, or what the status says."""
        for key, value in error.trailing_metadata() or ():
            if key == ERROR_KEY:
                with contextlib.suppress(InvalidRequest):  # something else's
                    return PROTOBUF.decode_error(value)
        code, why = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE and self._proxy is not None:
            return Unavailable(
                f"{self._url} cannot be reached through the proxy {self._proxy.setting} ({why}); "
                "check the proxy, or add the service's host to no_proxy"
            )
        if code is grpc.StatusCode.UNAVAILABLE:
            return Unavailable(f"no service answers at {self._url} ({why}); start one, or give its URL")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"{self._url} gave no answer to {_METHODS[call.operation]} within {call.timeout_s:g} s; allow more time"
            )
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in why:
            return PayloadTooLarge(f"{self._url}: {why}; send several requests")
        return _BY_CODE.get(code, SynodError)(f"{self._url} answered {code.name}: {why}")


class RpcTransport(_Rpc):
    """Blocking, thread-safe."""

    def __init__(self, url: str, token: str | None) -> None:
        super().__init__(url, token)
        self._channel = (
            grpc.secure_channel(self._target, grpc.ssl_channel_credentials(), options=self._channel_options)
            if url.startswith("grpcs:")
            else grpc.insecure_channel(self._target, options=self._channel_options)
        )

    def send(self, call: Call) -> Answer:
        body = _HEALTH_OF_SERVICE if call.operation == "ready" else call.body
        method: Any = self._channel.unary_unary(_METHODS[call.operation])
        try:
            return self._answer(call, method(body, **self._options(call)))
        except grpc.RpcError as error:
            raise self._error(call, error) from None

    def stream(self, call: Call) -> Generator[bytes]:
        method: Any = self._channel.stream_stream(_METHODS[call.operation])
        parts = method(iter([call.body]), **self._options(call))
        try:
            yield from parts
        except grpc.RpcError as error:
            raise self._error(call, error) from None
        finally:
            parts.cancel()

    def close(self) -> None:
        self._channel.close()


class AsyncRpcTransport(_Rpc):
    """For one event loop."""

    def __init__(self, url: str, token: str | None) -> None:
        super().__init__(url, token)
        self._channel = (
            grpc.aio.secure_channel(self._target, grpc.ssl_channel_credentials(), options=self._channel_options)
            if url.startswith("grpcs:")
            else grpc.aio.insecure_channel(self._target, options=self._channel_options)
        )

    async def send(self, call: Call) -> Answer:
        body = _HEALTH_OF_SERVICE if call.operation == "ready" else call.body
        method: Any = self._channel.unary_unary(_METHODS[call.operation])
        try:
            return self._answer(call, await method(body, **self._options(call)))
        except grpc.RpcError as error:
            raise self._error(call, error) from None

    async def stream(self, call: Call) -> AsyncGenerator[bytes]:
        method: Any = self._channel.stream_stream(_METHODS[call.operation])
        parts = method(iter([call.body]), **self._options(call))
        try:
            async for part in parts:
                yield part
        except grpc.RpcError as error:
            raise self._error(call, error) from None
        finally:
            parts.cancel()

    async def close(self) -> None:
        await self._channel.close()
