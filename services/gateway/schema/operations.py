"""What each path takes and gives, as keyword arguments of its route: bodies in every format, refusals by status."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from services.gateway.encoding import ENCODINGS
from services.gateway.ndjson import NDJSON
from services.gateway.schema import examples, records
from services.gateway.schema.records import Schema
from synod import errors
from synod.codec import CODECS, JSON, MSGPACK

Operation = dict[str, Any]

SECURITY_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A token of the service (docs/operations.md)"}
}
_SECURITY: Final[list[dict[str, list[str]]]] = [{"bearer": []}, {}]  # a service without tokens accepts every caller
_MEANINGS: Final[tuple[tuple[type[errors.SynodError], str], ...]] = (
    (errors.InvalidRequest, "The request cannot be read, or asks for nothing"),
    (errors.Unauthenticated, "No token, or an unknown one"),
    (errors.PermissionDenied, "The token has no permission for this"),
    (errors.UnknownScorer, "The service does not have this scorer or ensemble"),
    (errors.UnknownImage, "Images that the service does not store: upload `digests`, then ask again"),
    (errors.PayloadTooLarge, "Body, item count or text over a limit"),
    (errors.UnsupportedMedia, "A content type without a codec, or a content encoding that is not read"),
    (errors.ImageTooLarge, "An image over a limit"),
    (errors.Overloaded, "A queue or a quota is full, or too many pixels are held: ask again after `retry_after_s`"),
    (errors.SynodError, "The service failed; quote the request id"),
    (errors.Unavailable, "Temporarily unavailable: ask again"),
    (errors.DeadlineExceeded, "`timeout_ms` passed first"),
)
_EXAMPLES: Final = {errors.UnknownImage: examples.UNKNOWN_IMAGE_EXAMPLE, errors.Overloaded: examples.OVERLOADED_EXAMPLE}
_REQUEST_ID: Schema = {"description": "The request's id", "schema": {"type": "string"}}
_TRACE_ID: Schema = {"description": "The request's trace, where it is traced", "schema": {"type": "string"}}
_RETRY_AFTER: Schema = {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1}}
_CONTENT_ENCODING: Final[Schema] = {
    "name": "content-encoding",
    "in": "header",
    "description": "How the body is compressed. The limit of a body holds for what it decodes to",
    "schema": {"type": "string", "enum": list(ENCODINGS)},
}
_CHALLENGE: Schema = {"description": "RFC 6750", "schema": {"type": "string"}}


def _bodies(schema: Schema, message: str, **json_only: Any) -> dict[str, Schema]:
    """A body in every format; `message` is its name in reward.proto."""
    described = {"description": f"synod.v1.{message} of protos/synod/v1/reward.proto", "format": "binary"}
    of_kind: dict[str, Schema] = {
        JSON.content_type: {"schema": schema, **json_only},
        MSGPACK.content_type: {"schema": schema},
    }
    return {kind: of_kind.get(kind, {"schema": {"type": "string", **described}}) for kind in CODECS}


def _takes(schema: Schema, message: str, **json_only: Any) -> dict[str, Any]:
    return {
        "parameters": [_CONTENT_ENCODING],
        "requestBody": {"required": True, "content": _bodies(schema, message, **json_only)},
    }


def _gives(description: str, content: dict[str, Schema], headers: dict[str, Schema] | None = None) -> dict[str, Any]:
    named = {"x-synod-request-id": _REQUEST_ID, "x-synod-trace-id": _TRACE_ID, **(headers or {})}
    return {"description": description, "content": content, "headers": named}


def _refusals(*kinds: type[errors.SynodError]) -> dict[int | str, dict[str, Any]]:
    return {kind.http_status: _refusal(kind, meaning) for kind, meaning in _MEANINGS if kind in kinds}


def _refusal(kind: type[errors.SynodError], meaning: str) -> dict[str, Any]:
    headers = {"retry-after": _RETRY_AFTER} if kind.retryable else {}
    if kind in (errors.Unauthenticated, errors.PermissionDenied):
        headers["www-authenticate"] = _CHALLENGE
    example = {"example": _EXAMPLES[kind]} if kind in _EXAMPLES else {}
    return _gives(meaning, _bodies(records.FAILED, "Error", **example), headers)


def _kinds(*but: type[errors.SynodError]) -> Iterable[type[errors.SynodError]]:
    return (kind for kind, _ in _MEANINGS if kind not in but)


_GUARDED = (errors.Unauthenticated, errors.PermissionDenied, errors.SynodError)
SCORE: Operation = {
    "openapi_extra": {
        **_takes(records.REQUEST, "ScoreRequest", examples=examples.REQUEST_EXAMPLES),
        "security": _SECURITY,
    },
    "responses": {
        200: _gives(
            "One result per item, in order; or, where NDJSON is accepted, each outcome as soon as it is known",
            {
                **_bodies(records.RESPONSE, "ScoreResponse", example=examples.RESPONSE_EXAMPLE),
                NDJSON: {"schema": records.PART, "example": examples.PARTS_EXAMPLE},
            },
        ),
        **_refusals(*_kinds(errors.ImageTooLarge)),
    },
}
IMAGES: Operation = {
    "openapi_extra": {**_takes(records.PUT, "PutImagesRequest"), "security": _SECURITY},
    "responses": {
        200: _gives("One digest per image, in order", _bodies(records.DIGESTS, "PutImagesResponse")),
        **_refusals(
            *_GUARDED, errors.InvalidRequest, errors.PayloadTooLarge, errors.UnsupportedMedia, errors.ImageTooLarge
        ),
    },
}
SCORERS: Operation = {
    "openapi_extra": {"security": _SECURITY},
    "responses": {
        200: _gives("What this service serves", _bodies(records.CATALOGUE, "ListScorersResponse")),
        **_refusals(*_GUARDED),
    },
}


def _json(description: str, schema: Schema) -> dict[str, Any]:
    return _gives(description, {JSON.content_type: {"schema": schema}})


HEALTH: Operation = {"responses": {200: _json("Alive", records.ALIVE)}}
READY: Operation = {
    "responses": {200: _json("Ready", records.READINESS), 503: _json("Not yet, with reasons", records.READINESS)}
}
METRICS: Operation = {
    "openapi_extra": {"security": _SECURITY},
    "responses": {
        200: _gives("Prometheus text", {"text/plain": {"schema": {"type": "string"}}}),
        **_refusals(*_GUARDED),
    },
}
