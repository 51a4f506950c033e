"""gRPC: three-line adapters (decode, call, encode) between bytes and the gateway; the rim where errors become statuses.

Handlers take and give bytes: `synod.codec` bounds a body before it parses it, off the event loop. An error ends a call
with its status and, in the trailing metadata ERROR_KEY, with itself; in a stream it ends one request of many. Where
requests are traced, each call that brings work has a span, with a child for each request of a stream, and the trailing
metadata TRACE_ID_HEADER says whose trace it is.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Container, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, NoReturn, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.backends import ScorerBackend
from services.gateway.admission import Caller
from services.gateway.auth import Authenticator
from services.gateway.boundary import OpenRequest
from services.observability import tracing
from synod.codec import PROTOBUF
from synod.contracts import (
    Catalogue,
    ImageData,
    Part,
    PutImagesResponse,
    RequestError,
    ScoreRequest,
    ScoreResponse,
)
from synod.errors import SynodError, UnknownImage, error_of
from synod.protobuf import ERROR_KEY, SERVICE

log = logging.getLogger("synod.gateway")
REQUESTS_AT_ONCE: Final = 32  # of one stream; it is read no faster
PARTS_WAITING: Final = 64  # of one stream, for its caller to read
HEALTH_PERIOD_S: Final = 1.0
# Stock clients accept 8 KiB of trailing metadata and turn what is larger into RESOURCE_EXHAUSTED. Of it an error takes
# 3072 * 4/3 bytes at most (base64), the status message 1024 * 3 (percent-encoding).
MAX_ERROR_BYTES: Final = 3072
MAX_DETAILS: Final = 1024
MAX_MESSAGE_BYTES: Final = 768  # of an error that does not fit
MAX_DIGESTS: Final = 24  # of an error that does not fit; 78 bytes each
KEEPALIVE_OPTIONS: Final = (  # pings as often as every 250 ms are accepted, with and without a call under way
    ("grpc.http2.min_ping_interval_without_data_ms", 250),
    ("grpc.keepalive_permit_without_calls", 1),
)
_Context = grpc.aio.ServicerContext[Any, Any]


class RewardGateway(Protocol):
    """What is served. All raise the SynodError of a request that fails as a whole."""

    @property
    def backend(self) -> ScorerBackend:
        """Where readiness comes from."""
        ...

    @property
    def ensembles(self) -> Container[str]:
        """The names of those served."""
        ...

    async def score(self, request: ScoreRequest, caller: Caller) -> ScoreResponse:
        """One result per item, in order."""
        ...

    def stream(self, request: ScoreRequest, caller: Caller) -> AsyncGenerator[Part]:
        """The same in parts, the rewards last. Closing it drops the work."""
        ...

    async def put_images(self, images: Sequence[ImageData]) -> Sequence[str]:
        """Keep images; their digests, in order."""
        ...

    async def catalogue(self) -> Catalogue:
        """What is served, the limits, and how each scorer was loaded."""
        ...


class RewardServicer:
    """`synod.v1.RewardService` over a gateway, for those whom `authenticator` lets in."""

    def __init__(self, gateway: RewardGateway, authenticator: Authenticator) -> None:
        self._gateway, self._authenticator = gateway, authenticator

    async def score(self, body: bytes, context: _Context) -> bytes:
        """Score."""

        opened = OpenRequest("Score", _span("Score", context))

        async def answer() -> bytes:
            caller = self._caller(context)
            opened.access.set_caller(caller.name)
            request = await asyncio.to_thread(PROTOBUF.decode_request, body)
            request = replace(request, request_id=request.request_id or uuid.uuid4().hex)
            opened.access.set_request(request, self._gateway.backend.specs, self._gateway.ensembles)
            return PROTOBUF.encode_response(await self._gateway.score(request, caller))

        return await _at_rim(answer, context, opened)

    async def put_images(self, body: bytes, context: _Context) -> bytes:
        """PutImages."""

        opened = OpenRequest("PutImages", _span("PutImages", context))

        async def answer() -> bytes:
            opened.access.set_caller(self._caller(context).name)
            request = await asyncio.to_thread(PROTOBUF.decode_put, body)
            opened.span.set(items=len(request.images))
            digests = await self._gateway.put_images(request.images)
            return PROTOBUF.encode_digests(PutImagesResponse(tuple(digests)))

        return await _at_rim(answer, context, opened)

    async def list_scorers(self, body: bytes, context: _Context) -> bytes:
        """ListScorers."""

        opened = OpenRequest("ListScorers")

        async def answer() -> bytes:
            opened.access.set_caller(self._caller(context).name)
            return PROTOBUF.encode_catalogue(await self._gateway.catalogue())

        return await _at_rim(answer, context, opened)

    async def score_stream(self, bodies: AsyncIterator[bytes], context: _Context) -> AsyncGenerator[bytes]:
        """ScoreStream: requests are answered side by side, up to REQUESTS_AT_ONCE of them."""
        span = _span("ScoreStream", context)
        try:
            caller = self._caller(context)
        except SynodError as error:
            OpenRequest("ScoreStream", span).finish(error.code)
            await abort(context, error, span)
        _tell_trace(context, span)
        parts: asyncio.Queue[bytes | None] = asyncio.Queue(PARTS_WAITING)
        answering = asyncio.create_task(self._answer_all(bodies, caller, parts, span))
        try:
            while (part := await parts.get()) is not None:
                yield part
        finally:
            answering.cancel()
            await asyncio.wait([answering])
            span.end()

    def _caller(self, context: _Context) -> Caller:
        """Raises Unauthenticated, PermissionDenied."""
        given = dict(context.invocation_metadata() or ()).get("authorization")
        return self._authenticator.authenticate(given if given is None else str(given), "score")

    async def _answer_all(
        self, bodies: AsyncIterator[bytes], caller: Caller, parts: asyncio.Queue[bytes | None], span: tracing.Span
    ) -> None:
        """Puts every part of every answer, then None."""
        room = asyncio.Semaphore(REQUESTS_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as answers:
                async for body in bodies:
                    await room.acquire()
                    answer = self._answer(body, caller, parts, span.child("request"))
                    answers.create_task(answer).add_done_callback(lambda _: room.release())
        except Exception:  # the caller's side broke: what is answered is answered
            log.exception("a stream of requests broke off")
        await parts.put(None)

    async def _answer(
        self, body: bytes, caller: Caller, parts: asyncio.Queue[bytes | None], span: tracing.Span
    ) -> None:
        request_id = ""
        opened = OpenRequest("ScoreStream", span)
        opened.access.set_caller(caller.name)
        outcome = "client_gone"
        try:
            request = await asyncio.to_thread(PROTOBUF.decode_stream_request, body)
            request_id = request.request_id or uuid.uuid4().hex
            request = replace(request, request_id=request_id)
            opened.access.set_request(request, self._gateway.backend.specs, self._gateway.ensembles)
            with tracing.use_span(span):
                async with aclosing(self._gateway.stream(request, caller)) as stream:
                    async for part in stream:
                        await parts.put(PROTOBUF.encode_part(part))
            outcome = "ok"
        except Exception as error:  # a rim: it ends this request alone
            failed = _told(error, span)
            outcome = failed.code
            await parts.put(PROTOBUF.encode_part(RequestError(request_id, failed)))
        finally:
            opened.finish(outcome)


class RpcServer:
    """The gRPC face of a service: the service, health and reflection, which are open to all."""

    def __init__(
        self,
        gateway: RewardGateway,
        max_body_bytes: int,
        authenticator: Authenticator | None = None,
    ) -> None:
        self._gateway = gateway
        sizes = (("grpc.max_receive_message_length", max_body_bytes), ("grpc.max_send_message_length", -1))
        self._server = grpc.aio.server(options=[*sizes, *KEEPALIVE_OPTIONS])
        self._health = health.aio.HealthServicer()
        add_to_server(RewardServicer(gateway, authenticator or Authenticator()), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self._watching: asyncio.Task[None] | None = None

    async def start(self, address: str) -> int:
        """Listen on "host:port" without TLS, port 0 for a free one; the port. Raises RuntimeError when it is taken."""
        port = self._server.add_insecure_port(address)
        await self._set_health()
        await self._server.start()
        self._watching = asyncio.create_task(self._watch())
        return port

    async def stop(self, grace_s: float = 0.0) -> None:
        """Take no more calls, and end those under way after `grace_s`."""
        if self._watching is not None:
            self._watching.cancel()
        await self._server.stop(grace_s)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_PERIOD_S)
            await self._set_health()

    async def _set_health(self) -> None:
        """The service "" is alive; SERVICE is serving when every scorer is ready."""
        status = health_pb2.HealthCheckResponse
        try:
            ready = all(one.ready for one in (await self._gateway.backend.readiness()).values())
        except Exception:  # a rim: who cannot be asked is not ready
            log.exception("readiness cannot be told")
            ready = False
        await self._health.set("", status.SERVING)
        await self._health.set(SERVICE, status.SERVING if ready else status.NOT_SERVING)


def add_to_server(servicer: RewardServicer, server: Any) -> None:
    """Register the service, as the generated function of that kind does, with handlers over bytes."""
    handlers: dict[str, Any] = {
        "Score": grpc.unary_unary_rpc_method_handler(servicer.score),
        "ScoreStream": grpc.stream_stream_rpc_method_handler(servicer.score_stream),
        "ListScorers": grpc.unary_unary_rpc_method_handler(servicer.list_scorers),
        "PutImages": grpc.unary_unary_rpc_method_handler(servicer.put_images),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


async def abort(context: _Context, error: SynodError, span: tracing.Span = tracing.NO_SPAN) -> NoReturn:
    """End a call with `error`, and tell of its trace."""
    metadata: tuple[tuple[str, str | bytes], ...] = ((ERROR_KEY, _encode_bounded(error)), *_trace_of(span))
    details = error.message[:MAX_DETAILS].encode("ascii", "backslashreplace").decode()[:MAX_DETAILS]
    await context.abort(grpc.StatusCode[error.grpc_status], details, metadata)


def _encode_bounded(error: SynodError) -> bytes:
    """The error in at most MAX_ERROR_BYTES: a larger one is cut, and its message ends with what was left out."""
    encoded = PROTOBUF.encode_error(error)
    if len(encoded) <= MAX_ERROR_BYTES:
        return encoded
    digests = error.digests if isinstance(error, UnknownImage) else ()
    message = error.message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore")
    cut = f"{len(error.message) - len(message)} more characters"
    if len(digests) > MAX_DIGESTS:
        cut += f", {len(digests) - MAX_DIGESTS} more digests"
    return PROTOBUF.encode_error(
        error_of(
            error.code,
            f"{message}... ({cut}; gRPC's metadata has no room for them)",
            retryable=error.retryable,
            digests=digests[:MAX_DIGESTS],
            retry_after_s=error.retry_after_s,
        )
    )


def _span(name: str, context: _Context) -> tracing.Span:
    """The span of a call, which goes on a trace that its metadata tells of."""
    if not tracing.enabled():
        return tracing.NO_SPAN
    return tracing.request_span(name, {key: str(value) for key, value in context.invocation_metadata() or ()})


def _trace_of(span: tracing.Span) -> tuple[tuple[str, str], ...]:
    return () if span.trace_id is None else ((tracing.TRACE_ID_HEADER, span.trace_id),)


def _tell_trace(context: _Context, span: tracing.Span) -> None:
    if span.trace_id is not None:
        context.set_trailing_metadata(_trace_of(span))


async def _at_rim(answer: Callable[[], Awaitable[bytes]], context: _Context, opened: OpenRequest) -> bytes:
    outcome = "client_gone"
    try:
        with tracing.use_span(opened.span):
            answered = await answer()
        _tell_trace(context, opened.span)
        outcome = "ok"
        return answered
    except Exception as error:
        failed = _told(error, opened.span)
        outcome = failed.code
    finally:
        opened.finish(outcome)
    return await abort(context, failed, opened.span)


def _told(error: Exception, span: tracing.Span) -> SynodError:
    """What the caller learns. Of an error that is our own fault the log has the story, under a number."""
    if isinstance(error, SynodError):
        return error
    number = uuid.uuid4().hex
    log.error("request failed, quoted as %s (%s)", number, span, exc_info=error)
    return SynodError(f"internal error; quote {number}")
