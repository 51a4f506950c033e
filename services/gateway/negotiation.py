"""Choose the content type of a response, and encode errors in it.

The response has the type in Accept, or else the type of the body, or else JSON.
"""

from __future__ import annotations

import math
from typing import Final

from fastapi import Request, Response
from starlette.exceptions import HTTPException

from services.gateway import auth
from synod.codec import CODECS, Codec
from synod.errors import InvalidRequest, SynodError
from synod.reader import quote

JSON: Final = "application/json"


def accepted_types(http: Request) -> list[str]:
    """Return the media types of the Accept header, in order, without parameters."""
    return [kind.partition(";")[0].strip().lower() for kind in http.headers.get("accept", "").split(",")]


def response_codec(http: Request) -> Codec:
    """Return the codec of the first type in Accept that has one, or else of the body's type, or else of JSON."""
    own = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    return CODECS[next((kind for kind in (*accepted_types(http), own) if kind in CODECS), JSON)]


def error_response(http: Request, error: SynodError) -> Response:
    """Encode an error in the type that the caller accepts, with its status and headers."""
    codec = response_codec(http)
    headers = {}
    if error.retryable:
        headers["retry-after"] = str(math.ceil(error.retry_after_s or 1))
    if (challenge := auth.challenge(error)) is not None:
        headers["www-authenticate"] = challenge
    return Response(codec.encode_error(error), error.http_status, headers, media_type=codec.content_type)


async def not_found(http: Request, refused: HTTPException) -> Response:
    """Return a typed error for an unknown path or method, with the status and headers of HTTP."""
    codec = response_codec(http)
    error = InvalidRequest(
        f"this service has no endpoint {quote(http.method)[1:-1]} {quote(http.url.path)}; GET /docs lists all"
    )
    return Response(codec.encode_error(error), refused.status_code, refused.headers, media_type=codec.content_type)
