"""Serve HTTP requests: error boundary, callers and bodies, for all endpoints.

Every response carries REQUEST_ID_HEADER: the id in the body, or else the header `x-request-id`, or else a new one.
(Serve's proxy sets `x-request-id` on every response by itself and does not know the id in the body.) If requests are
traced, all but GET have a span, and the response carries TRACE_ID_HEADER.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from services.gateway import auth
from services.gateway.boundary import OpenRequest
from services.gateway.core import Gateway
from services.gateway.encoding import check_encoding, decompress
from services.gateway.negotiation import JSON, error_response
from services.gateway.quota import Caller
from services.observability import access_log, tracing
from synod.errors import PayloadTooLarge

T = TypeVar("T")
REQUEST_ID_HEADER: Final = "x-synod-request-id"
SMALL_BODY_BYTES: Final = 2**19


class ErrorBoundaryRoute(APIRoute):
    """Open a request for the handler and turn its exceptions into typed error responses."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        methods = (self.methods or set()) - {"GET"}
        span_name = f"{'/'.join(sorted(methods))} {self.path}" if methods else None

        async def handle(http: Request) -> Response:
            span = tracing.request_span(span_name, http.headers) if span_name else tracing.NO_SPAN
            opened = http.state.opened = OpenRequest(self.path, span, http.headers.get("x-request-id"))
            try:
                with tracing.use_span(span):
                    response = await handler(http)
                if not opened.streaming:
                    opened.succeed()
            except ClientDisconnect:
                response = Response(status_code=499)
            except Exception as error:
                response = error_response(http, opened.fail(error))
            finally:
                if not opened.streaming:
                    opened.close()
            if (safe_id := access_log.safe_id(opened.request_id)) is not None:
                response.headers[REQUEST_ID_HEADER] = safe_id
            if span.trace_id is not None:
                response.headers[tracing.TRACE_ID_HEADER] = span.trace_id
            return response

        return handle


def opened(http: Request) -> OpenRequest:
    """Return the open request of a handler behind ErrorBoundaryRoute."""
    request: OpenRequest = http.state.opened
    return request


def gateway_of(http: Request) -> Gateway:
    """Return the gateway of this process."""
    gateway: Gateway = http.app.state.gateway
    return gateway


def json_response(body: object, status: int = 200) -> Response:
    """Return a response of JSON. Raises ValueError for a number that JSON has not, such as NaN."""
    return Response(json.dumps(body, allow_nan=False), status, media_type=JSON)


def authenticate(http: Request, scope: auth.Scope, authorization: str | None = None) -> Caller:
    """Return the caller by `authorization`, or else by the header. Raises Unauthenticated, PermissionDenied."""
    authorization = authorization or http.headers.get("authorization")
    return opened(http).authenticate(http.app.state.authenticator, authorization, scope)


async def read_body(http: Request) -> bytes:
    """Read and decompress the body. The limit holds for the declared, the received and the decompressed size.

    Raises PayloadTooLarge, UnsupportedMedia for an unknown encoding, InvalidRequest for invalid compressed data.
    """
    limit = gateway_of(http).limits.max_body_bytes
    encoding = check_encoding(http.headers.get("content-encoding", ""))
    declared = http.headers.get("content-length", "")
    _check_size(int(declared) if declared.isdigit() else 0, limit)
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        _check_size(len(body), limit)
    return bytes(body) if encoding is None else await asyncio.to_thread(decompress, bytes(body), encoding, limit)


async def decode_body(decoder: Callable[[bytes], T], body: bytes) -> T:
    """Return `decoder(body)`. A large body is decoded in a thread; a small one takes less time than the switch."""
    return decoder(body) if len(body) <= SMALL_BODY_BYTES else await asyncio.to_thread(decoder, body)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise PayloadTooLarge(f"the body has {size} bytes or more, the limit is {limit}; send several requests")
