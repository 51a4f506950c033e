"""JSON Schema of the wire's records, made of the types and metadata of `synod.contracts`.

What is optional in a request may also be null; an answer holds no null but `reward`. The schema describes each field by
itself. Rules between fields (as many truth values as segments, bytes that fill their shape, targets that exist) are
checked by the codec alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args, get_origin

from synod import contracts as c
from synod.errors import SynodError
from synod.reader import INT64
from synod.records import IMAGE, IMAGE_DATA, OUTCOME, Field, Kind, fields_of, kind_of

Schema = dict[str, Any]
_SCALARS: Final[Mapping[Any, str]] = {str: "string", float: "number", int: "integer", bool: "boolean"}


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


def _or_null(of: Schema) -> Schema:
    return {"anyOf": [of, {"type": "null"}]}


def _list(of: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": of, **more}


def _record(record: type, *, answer: bool, without: str = "") -> Schema:
    known = [field for field in fields_of(record) if field.name != without]
    required = [field.key for field in known if (field.always if answer else field.required)]
    return _object(required, **{field.key: _field(field, answer) for field in known})


def _field(field: Field, answer: bool) -> Schema:
    of = _schema(field.kind, answer)
    if field.kind.about:
        of = of | {"description": field.kind.about}
    null = field.always and field.kind.nullable if answer else not field.required
    return _or_null(of) if null else of


def _schema(kind: Kind, answer: bool) -> Schema:
    """The schema of a kind where it is not null."""
    if kind.members:
        unions = {IMAGE: _IMAGE, IMAGE_DATA: _IMAGE_DATA, OUTCOME: _OUTCOME}
        return unions[kind.members]
    origin = get_origin(kind.type)
    if kind.type in _SCALARS:
        return {"type": _SCALARS[kind.type], **_limits(kind)}
    if kind.type is SynodError:
        return _record(c.ErrorFields, answer=answer)
    if origin is Literal:
        return {"enum": list(get_args(kind.type))}
    if origin is Mapping:
        value = kind.entries[1]
        return {"type": "object", **({} if value.type is Any else {"additionalProperties": _schema(value, answer)})}
    if origin is tuple:
        return _tuple(kind, answer)
    return _record(kind.type, answer=answer)


def _tuple(kind: Kind, answer: bool) -> Schema:
    entries = [_or_null(_schema(one, answer)) if one.nullable else _schema(one, answer) for one in kind.entries]
    if Ellipsis in get_args(kind.type):
        return _list(entries[0], **({} if kind.not_empty is None else {"minItems": 1}))
    length = {"minItems": len(entries), "maxItems": len(entries)}
    return {"type": "array", "prefixItems": entries, **length, **({"description": kind.about} if kind.about else {})}


def _limits(kind: Kind) -> Schema:
    if kind.pattern is not None:
        return {"pattern": f"^{kind.pattern.regex}$"}
    low, high = kind.bounds.low, kind.bounds.high
    if kind.type is int:
        return {"minimum": max(low, INT64.start), "maximum": min(high, INT64.stop - 1)}
    return {name: one for name, one in (("minimum", low), ("maximum", high)) if math.isfinite(one)}


_BASE64: Schema = {
    "type": "string",
    "contentEncoding": "base64",
    "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
    "description": "PNG, JPEG or WebP; bytes in msgpack and protobuf",
}
_SIDE = _schema(kind_of(c.Count), False)
_SHAPE: Schema = {"type": "array", "prefixItems": [_SIDE, _SIDE, {"const": 3}], "minItems": 3, "maxItems": 3}
_RAW = _object(["data", "shape"], data=_BASE64, shape=_SHAPE) | {
    "description": "raw uint8 RGB rows; shape is [H, W, 3]"
}
_REFERENCE = _record(c.ImageRef, answer=False) | {"description": "an image that PUT /v1/images stored before"}
_IMAGE_DATA: Schema = {"anyOf": [_BASE64, _RAW]}
_IMAGE: Schema = {"anyOf": [_BASE64, _RAW, _REFERENCE]}
_FAILURE = _object(["error"], error=_record(c.ScoreFailure, answer=True))
_OUTCOME: Schema = {"anyOf": [_record(c.Score, answer=True), _FAILURE]}

REQUEST = _record(c.ScoreRequest, answer=False)
PUT = _record(c.PutImagesRequest, answer=False)
DIGESTS = _record(c.PutImagesResponse, answer=True)
FAILED = _object(["error"], error=_record(c.ErrorFields, answer=True))
RESPONSE = _record(c.ScoreResponse, answer=True)
_SCORED = _record(c.ScoredItem, answer=True, without="request_id")
PART: Schema = {
    "anyOf": [
        _object(["request_id", "scored"], request_id={"type": "string"}, scored=_SCORED),
        _record(c.Rewards, answer=True),
        _record(c.RequestError, answer=True),
    ],
    "description": "one line of the answer: an outcome, or at the end the rewards or an error",
}
CATALOGUE = _record(c.Catalogue, answer=True)
ALIVE = _object(["alive"], alive={"type": "boolean"})
_READINESS = _object(
    ["ready", "replicas", "wanted", "reason"],
    ready={"type": "boolean"},
    replicas={"type": "integer"},
    wanted={"type": "integer"},
    reason={"type": ["string", "null"]},
)
READINESS = _object(
    ["ready", "scorers"],
    ready={"type": "boolean"},
    scorers={"type": "object", "additionalProperties": _READINESS},
)
