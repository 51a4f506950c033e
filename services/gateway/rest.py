"""REST: three-line adapters (decode, call, encode) between HTTP and the gateway; the rim where errors become answers.

A body is JSON or msgpack by its Content-Type; the answer follows Accept, or else the body's own type. Every answer
carries REQUEST_ID_HEADER: the id in the caller's body, or else its `x-request-id`, or a new one. (Serve's proxy writes
`x-request-id` into every answer itself, and does not know the body's.) Where requests are traced, those that bring work
(all but GET) have a span each, and TRACE_ID_HEADER says whose trace it is.

A caller that leaves cancels its request. No image is ever fetched: what is scored comes in the body, or was put.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import math
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from services.gateway import auth, schema
from services.gateway.admission import Caller
from services.gateway.boundary import OpenRequest
from services.gateway.core import Gateway
from services.gateway.encoding import check_encoding, decoded
from services.gateway.ndjson import NDJSON, Ndjson, gone
from services.observability import access_log, metrics, tracing
from synod.codec import CODECS, Codec, codec_for
from synod.contracts import PutImagesResponse
from synod.errors import InvalidRequest, PayloadTooLarge, SynodError
from synod.reader import quote

T = TypeVar("T")
log = logging.getLogger("synod.gateway")
JSON = "application/json"
REQUEST_ID_HEADER = "x-synod-request-id"
SMALL_BODY = 2**19


class ErrorBoundaryRoute(APIRoute):
    """Answers every request: a SynodError with its status, anything else with a bare 500 (the log has the story)."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        methods = (self.methods or set()) - {"GET"}
        name = f"{'/'.join(sorted(methods))} {self.path}" if methods else None

        async def answer(http: Request) -> Response:
            http.state.request_id = http.headers.get("x-request-id") or uuid.uuid4().hex
            span = tracing.request_span(name, http.headers) if name else tracing.NO_SPAN
            opened = http.state.opened = OpenRequest(self.path, span)
            outcome = "client_gone"
            try:
                with tracing.use_span(span):
                    response, outcome = await _outcome(handler, http)
            finally:
                opened.access.request_id = http.state.request_id
                if outcome != "ok" or not isinstance(response, Ndjson):
                    opened.finish(outcome)
            if (safe_id := access_log.safe_id(http.state.request_id)) is not None:
                response.headers[REQUEST_ID_HEADER] = safe_id
            if span.trace_id is not None:
                response.headers[tracing.TRACE_ID_HEADER] = span.trace_id
            return response

        return answer


router = APIRouter(route_class=ErrorBoundaryRoute)


@router.post("/v1/score", response_class=Response, summary="Score a batch of items", **schema.SCORE)
async def score(http: Request) -> Response:
    """Each item's value per scorer, and the ensemble's reward. An item that fails does not touch its neighbours."""
    caller = caller_of(http, "score")
    codec = codec_for(http.headers.get("content-type"))
    request = await read_in(codec.decode_request, await read_body(http))
    http.state.request_id = request.request_id or http.state.request_id
    request = dataclasses.replace(request, request_id=http.state.request_id)
    http.state.opened.access.set_request(request, _gateway(http).backend.specs, _gateway(http).ensembles)
    if NDJSON in accepted(http):
        parts = _gateway(http).stream(request, caller)
        return await while_there(http, Ndjson.open(http, parts, http.state.request_id, http.state.opened))
    response = await while_there(http, _gateway(http).score(request, caller))
    answer = answer_codec(http)
    return Response(answer.encode_response(response), media_type=answer.content_type)


@router.put("/v1/images", response_class=Response, summary="Keep images", **schema.IMAGES)
async def images(http: Request) -> Response:
    """Requests may then name them by digest. What does not fit pushes out what was used longest ago."""
    caller_of(http, "score")
    codec = codec_for(http.headers.get("content-type"))
    request = await read_in(codec.decode_put, await read_body(http))
    http.state.opened.span.set(items=len(request.images))
    digests = await _gateway(http).put_images(request.images)
    answer = answer_codec(http)
    return Response(answer.encode_digests(PutImagesResponse(tuple(digests))), media_type=answer.content_type)


@router.get("/v1/scorers", response_class=Response, summary="The scorers and ensembles served", **schema.SCORERS)
async def scorers(http: Request) -> Response:
    """Each scorer's needs, range, source and where it runs, each ensemble's weights, and the limits of a request."""
    caller_of(http, "score")
    answer = answer_codec(http)
    return Response(answer.encode_catalogue(await _gateway(http).catalogue()), media_type=answer.content_type)


@router.get("/v1/health", response_class=Response, summary="The gateway is alive", **schema.HEALTH)
@router.get("/healthz", response_class=Response, summary="The gateway is alive", **schema.HEALTH)
async def healthz(http: Request) -> Response:
    """200 as soon as this gateway answers, whatever the scorers do."""
    return _json({"alive": True})


@router.get("/readyz", response_class=Response, summary="Every replica can score", **schema.READY)
async def readyz(http: Request) -> Response:
    """200 when every replica of every scorer has loaded and passed its golden items, else 503 with reasons."""
    found = await _gateway(http).backend.readiness()
    ready = all(one.ready for one in found.values())
    body = {"ready": ready, "scorers": {name: dataclasses.asdict(one) for name, one in found.items()}}
    return _json(body, 200 if ready else 503)


@router.get("/metrics", response_class=Response, summary="Prometheus metrics of all processes", **schema.METRICS)
async def prometheus(http: Request) -> Response:
    """Text exposition, summed over gateways and replicas; counters never go back."""
    if http.app.state.metrics_need_token:
        caller_of(http, "metrics")
    ranges = {name: (spec.low, spec.high) for name, spec in _gateway(http).backend.specs.items()}
    return Response(await asyncio.to_thread(metrics.render, ranges), media_type=metrics.CONTENT_TYPE)


def caller_of(http: Request, scope: auth.Scope, authorization: str | None = None) -> Caller:
    """Who asks, by `authorization`, or else by the header of that name. Raises Unauthenticated, PermissionDenied."""
    authenticator: auth.Authenticator = http.app.state.authenticator
    caller = authenticator.authenticate(authorization or http.headers.get("authorization"), scope)
    http.state.opened.access.set_caller(caller.name)
    return caller


def accepted(http: Request) -> list[str]:
    """The media types of Accept, in order, without parameters."""
    return [kind.partition(";")[0].strip().lower() for kind in http.headers.get("accept", "").split(",")]


def answer_codec(http: Request) -> Codec:
    """The codec of the first type in Accept that has one, else of the body's own type, else JSON."""
    own = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    return CODECS[next((kind for kind in (*accepted(http), own) if kind in CODECS), JSON)]


async def read_in(decode: Callable[[bytes], T], body: bytes) -> T:
    """`decode(body)`: here when it takes a millisecond or so, which is what a thread would cost, else in one."""
    return decode(body) if len(body) <= SMALL_BODY else await asyncio.to_thread(decode, body)


async def while_there(http: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves. Raises ClientDisconnect then."""
    task, left = asyncio.create_task(work), asyncio.create_task(gone(http))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        left.cancel()
        task.cancel()
        await asyncio.wait({task, left})


async def read_body(http: Request) -> bytes:
    """The body's content, up to the limit: refused by its declared length, while it streams in, or while it is decoded.

    Raises PayloadTooLarge, UnsupportedMedia for an encoding that is not read here, InvalidRequest for a broken one.
    """
    limit = _gateway(http).limits.max_body_bytes
    encoding = check_encoding(http.headers.get("content-encoding", ""))
    declared = http.headers.get("content-length", "")
    _bound(int(declared) if declared.isdigit() else 0, limit)
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        _bound(len(body), limit)
    return bytes(body) if encoding is None else await asyncio.to_thread(decoded, bytes(body), encoding, limit)


def error_response(http: Request, error: SynodError) -> Response:
    """`error` in the caller's type, with its status."""
    codec = answer_codec(http)
    headers = {}
    if error.retryable:
        headers["retry-after"] = str(math.ceil(error.retry_after_s or 1))
    if (challenge := auth.challenge(error)) is not None:
        headers["www-authenticate"] = challenge
    return Response(codec.encode_error(error), error.http_status, headers, media_type=codec.content_type)


async def unrouted(http: Request, refused: HTTPException) -> Response:
    """The answer for a path or a method that is not here: typed, with the status and headers of HTTP."""
    codec = answer_codec(http)
    error = InvalidRequest(f"no {quote(http.method)[1:-1]} {quote(http.url.path)} here; GET /docs tells what there is")
    return Response(codec.encode_error(error), refused.status_code, refused.headers, media_type=codec.content_type)


async def _outcome(handler: Callable[[Request], Awaitable[Response]], http: Request) -> tuple[Response, str]:
    """The answer and its name in the metrics."""
    try:
        return await handler(http), "ok"
    except SynodError as error:
        return error_response(http, error), error.code
    except ClientDisconnect:
        return Response(status_code=499), "client_gone"
    except Exception:  # the rim: the caller learns that it is our fault, the log learns why
        log.exception("request %s failed (%s)", http.state.request_id, http.state.opened.span)
        hidden = SynodError(f"internal error; quote request id {http.state.request_id}")
        return error_response(http, hidden), hidden.code


def _bound(size: int, limit: int) -> None:
    if size > limit:
        raise PayloadTooLarge(f"the body has {size} bytes or more, the limit is {limit}; send several requests")


def _gateway(http: Request) -> Gateway:
    gateway: Gateway = http.app.state.gateway
    return gateway


def _json(body: object, status: int = 200) -> Response:
    return Response(json.dumps(body), status, media_type=JSON)
