"""Serve gRPC calls: each decodes its body, calls the gateway and encodes the result.

Handlers work on bytes: `synod.codec` checks the bounds of a body before it parses it, in a thread. Callers are
authenticated before a body is received (`TokenInterceptor`). An error ends a call with a status and with itself in the
trailing metadata ERROR_KEY; in a stream it ends one request of many. If requests are traced, each call that brings work
has a span, with a child for each request of a stream, and the trailing metadata TRACE_ID_HEADER names its trace.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Final, NoReturn

import grpc

from services.gateway.auth import Authenticator
from services.gateway.boundary import OpenRequest
from services.gateway.core import Gateway
from services.gateway.quota import Caller
from services.observability import tracing
from services.settings import DEFAULT_TIMEOUT_MS, MAX_TIMEOUT_MS
from synod.codec import PROTOBUF
from synod.contracts import PutImagesResponse, RequestError, ScoreRequest
from synod.errors import SynodError, UnknownImage, error_of
from synod.protobuf import ERROR_KEY, SERVICE

log = logging.getLogger("synod.gateway")
CONCURRENT_REQUESTS: Final = 32  # of one stream; further requests stay unread
BUFFERED_PARTS: Final = 64  # of one stream, until the caller reads them
DEADLINE_MARGIN_S: Final = 0.2  # a response is ready this long before the deadline of its call, so that it arrives
# Stock clients accept 8 KiB of trailing metadata and turn more into RESOURCE_EXHAUSTED. An error takes at most
# 3072 * 4/3 bytes of it (base64), the status message 1024 * 3 (percent-encoding).
MAX_ERROR_BYTES: Final = 3072
MAX_DETAILS: Final = 1024
MAX_MESSAGE_BYTES: Final = 768  # of an error that does not fit
MAX_DIGESTS: Final = 24  # of an error that does not fit; 78 bytes each
Context = grpc.aio.ServicerContext[Any, Any]
_caller: ContextVar[Caller] = ContextVar("caller")  # of the call that is being handled, set by TokenInterceptor


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Ends calls of the reward service without an accepted token before gRPC receives their body, by metadata alone.

    Other services (health, reflection) need no token.
    """

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], call: Any) -> Any:
        """Return the method's handler, or one that refuses the call."""
        handler = await continuation(call)
        if handler is None or not call.method.startswith(f"/{SERVICE}/"):
            return handler
        authorization = dict(call.invocation_metadata or ()).get("authorization")
        try:
            _caller.set(self._authenticator.authenticate(authorization, "score"))
        except SynodError as error:
            return _refusal(call.method.rpartition("/")[2], error)
        return handler


class RewardServicer:
    """Implements `synod.v1.RewardService` with a gateway, behind a TokenInterceptor."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def score(self, body: bytes, context: Context) -> bytes:
        """Score a batch of items."""
        opened = OpenRequest("Score", _span("Score", context))

        async def respond() -> bytes:
            caller = _identify(opened)
            request = self._accept(opened, await asyncio.to_thread(PROTOBUF.decode_request, body), context)
            return PROTOBUF.encode_response(await self._gateway.score(request, caller))

        return await _respond(respond, opened, context)

    async def put_images(self, body: bytes, context: Context) -> bytes:
        """Store images and return their digests."""
        opened = OpenRequest("PutImages", _span("PutImages", context))

        async def respond() -> bytes:
            _identify(opened)
            request = await asyncio.to_thread(PROTOBUF.decode_put, body)
            opened.span.set(items=len(request.images))
            digests = await self._gateway.put_images(request.images)
            return PROTOBUF.encode_digests(PutImagesResponse(tuple(digests)))

        return await _respond(respond, opened, context)

    async def list_scorers(self, body: bytes, context: Context) -> bytes:
        """List scorers, ensembles and limits."""
        opened = OpenRequest("ListScorers")

        async def respond() -> bytes:
            _identify(opened)
            return PROTOBUF.encode_catalogue(await self._gateway.catalogue())

        return await _respond(respond, opened, context)

    async def score_stream(self, bodies: AsyncIterator[bytes], context: Context) -> AsyncGenerator[bytes]:
        """Score a stream of requests, up to CONCURRENT_REQUESTS at once; yield parts of all in any order."""
        span = _span("ScoreStream", context)
        _set_trace_metadata(context, span)
        parts: asyncio.Queue[bytes | None] = asyncio.Queue(BUFFERED_PARTS)
        scoring = asyncio.create_task(self._score_all(bodies, context, _caller.get(), parts, span))
        try:
            while (part := await parts.get()) is not None:
                yield part
        finally:
            scoring.cancel()
            await asyncio.wait([scoring])
            span.end()

    async def _score_all(
        self,
        bodies: AsyncIterator[bytes],
        context: Context,
        caller: Caller,
        parts: asyncio.Queue[bytes | None],
        span: tracing.Span,
    ) -> None:
        """Put the parts of all requests into `parts`, then None."""
        slots = asyncio.Semaphore(CONCURRENT_REQUESTS)
        try:
            async with asyncio.TaskGroup() as tasks:
                async for body in bodies:
                    await slots.acquire()
                    scoring = self._score_one(body, context, caller, parts, span.child("request"))
                    tasks.create_task(scoring).add_done_callback(lambda _: slots.release())
        except Exception:  # the caller's stream broke; requests read before are finished
            log.exception("a stream of requests broke")
        await parts.put(None)

    async def _score_one(
        self, body: bytes, context: Context, caller: Caller, parts: asyncio.Queue[bytes | None], span: tracing.Span
    ) -> None:
        opened = OpenRequest("ScoreStream", span)
        opened.set_caller(caller)
        request_id = ""
        try:
            request = self._accept(opened, await asyncio.to_thread(PROTOBUF.decode_stream_request, body), context)
            request_id = opened.request_id
            with tracing.use_span(span):
                async with aclosing(self._gateway.stream(request, caller)) as stream:
                    async for part in stream:
                        await parts.put(PROTOBUF.encode_part(part))
            opened.succeed()
        except Exception as error:  # an error boundary: it ends this request only
            await parts.put(PROTOBUF.encode_part(RequestError(request_id, opened.fail(error))))
        finally:
            opened.close()

    def _accept(self, opened: OpenRequest, request: ScoreRequest, context: Context) -> ScoreRequest:
        accepted = opened.accept(request, self._gateway.backend.specs, self._gateway.ensembles)
        return _within_deadline(accepted, context)


def _identify(opened: OpenRequest) -> Caller:
    """Return the caller and record its name."""
    caller = _caller.get()
    opened.set_caller(caller)
    return caller


def _refusal(method: str, error: SynodError) -> Any:
    """Return a handler that ends calls of any kind with `error`; as one of a stream, it receives no message."""

    async def refuse(bodies: AsyncIterator[bytes], context: Context) -> None:
        opened = OpenRequest(method, tracing.NO_SPAN if method == "ListScorers" else _span(method, context))
        opened.fail(error)
        opened.close()
        await abort(context, error, opened.span)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _within_deadline(request: ScoreRequest, context: Context) -> ScoreRequest:
    """Return the request with a `timeout_ms` that ends before the deadline of its call, if the call has one.

    One above the limit is left to be refused.
    """
    left_s: float | None = context.time_remaining()
    timeout_ms = DEFAULT_TIMEOUT_MS if request.timeout_ms is None else request.timeout_ms
    if left_s is None or timeout_ms > MAX_TIMEOUT_MS:
        return request
    left_ms = int(1000 * (left_s - min(DEADLINE_MARGIN_S, left_s / 5)))
    return replace(request, timeout_ms=min(timeout_ms, max(1, left_ms)))


async def _respond(respond: Callable[[], Awaitable[bytes]], opened: OpenRequest, context: Context) -> bytes:
    """Return the response, or end the call with a typed error."""
    try:
        with tracing.use_span(opened.span):
            response = await respond()
        _set_trace_metadata(context, opened.span)
        opened.succeed()
        return response
    except Exception as error:
        failed = opened.fail(error)
    finally:
        opened.close()
    return await abort(context, failed, opened.span)


async def abort(context: Context, error: SynodError, span: tracing.Span = tracing.NO_SPAN) -> NoReturn:
    """End a call with `error`, and name its trace."""
    metadata: tuple[tuple[str, str | bytes], ...] = ((ERROR_KEY, _encode_bounded(error)), *_trace_metadata(span))
    details = error.message[:MAX_DETAILS].encode("ascii", "backslashreplace").decode()[:MAX_DETAILS]
    await context.abort(grpc.StatusCode[error.grpc_status], details, metadata)


def _encode_bounded(error: SynodError) -> bytes:
    """Encode an error in at most MAX_ERROR_BYTES. A larger one is cut, and its message says what was left out."""
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
            f"{message}... ({cut}; too long for gRPC metadata)",
            retryable=error.retryable,
            digests=digests[:MAX_DIGESTS],
            retry_after_s=error.retry_after_s,
        )
    )


def _span(name: str, context: Context) -> tracing.Span:
    """Start the span of a call, in the trace that its metadata names."""
    if not tracing.enabled():
        return tracing.NO_SPAN
    return tracing.request_span(name, {key: str(value) for key, value in context.invocation_metadata() or ()})


def _trace_metadata(span: tracing.Span) -> tuple[tuple[str, str], ...]:
    return () if span.trace_id is None else ((tracing.TRACE_ID_HEADER, span.trace_id),)


def _set_trace_metadata(context: Context, span: tracing.Span) -> None:
    if span.trace_id is not None:
        context.set_trailing_metadata(_trace_metadata(span))
