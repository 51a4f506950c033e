"""JSON Schema of the wire's records. What is optional in a request may also be null; answers hold no null but `reward`.

The schema says what the shape of a body is; what a shape cannot say (as many truth values as segments, bytes that fill
their shape, targets that exist) the codec checks besides.
"""

from __future__ import annotations

from typing import Any

from synod.answers import MISSING
from synod.contracts import CONCEPT_KINDS, RELATIONS
from synod.reader import INT64

Schema = dict[str, Any]


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


def _given(required: list[str], **properties: Schema) -> Schema:
    """An object of a request: absent and null are the same."""
    nullable = {name: one if name in required else _or_null(one) for name, one in properties.items()}
    return _object(required, **nullable)


def _or_null(of: Schema) -> Schema:
    return {"anyOf": [of, {"type": "null"}]}


def _list(of: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": of, **more}


def _table(of: Schema, **more: Any) -> Schema:
    return {"type": "object", "additionalProperties": of, **more}


def _pair(first: Schema, second: Schema, **more: Any) -> Schema:
    return {"type": "array", "prefixItems": [first, second], "minItems": 2, "maxItems": 2, **more}


_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_WEIGHT: Schema = {"type": "number", "minimum": 0}
_INDEX: Schema = {"type": "integer", "minimum": 0, "maximum": INT64.stop - 1}
_COUNT: Schema = _INDEX | {"minimum": 1}
_BASE64: Schema = {
    "type": "string",
    "contentEncoding": "base64",
    "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
    "description": "PNG, JPEG or WebP; bytes in msgpack and protobuf",
}
_DIGEST: Schema = {
    "type": "string",
    "pattern": "^blake2b-256:[0-9a-f]{64}$",
    "description": "BLAKE2b-256 of a header line and the bytes as they were sent (docs/wire.md)",
}
_RAW = _object(
    ["data", "shape"],
    data=_BASE64,
    shape={"type": "array", "prefixItems": [_COUNT, _COUNT, {"const": 3}], "minItems": 3, "maxItems": 3},
) | {"description": "raw uint8 RGB rows; shape is [H, W, 3]"}
_REFERENCE = _object(["digest"], digest=_DIGEST) | {"description": "an image that PUT /v1/images put before"}
_CONTENT: Schema = {"anyOf": [_BASE64, _RAW]}
_IMAGE: Schema = {"anyOf": [_BASE64, _RAW, _REFERENCE]}

_CLAUSE = _given(
    ["class", "count"],
    **{
        "class": _TEXT,
        "count": _COUNT,
        "color": _TEXT,
        "position": _pair(
            {"enum": list(RELATIONS)},
            _INDEX,
            description="relation, index of the include clause it relates to",
        ),
    },
)
_QUESTION = _list(_TEXT, minItems=2, maxItems=2) | {"description": "a question and its expected answer (GenEval 2)"}
_GENEVAL = _given(
    ["tag", "include"], tag=_TEXT, include=_list(_CLAUSE), exclude=_list(_CLAUSE), vqa_list=_list(_QUESTION)
)
_REASONING = _object(
    ["text", "segments", "truth"],
    text=_TEXT,
    segments=_list(_TEXT),
    truth=_list({"type": "number", "minimum": 0, "maximum": 1}),
)
_CONCEPT = _given(["kind"], kind={"enum": list(CONCEPT_KINDS)}, class_word=_TEXT, token=_TEXT)
_ITEM = _given(
    [],
    image=_IMAGE,
    prompt=_TEXT,
    references=_list(_IMAGE),
    reasoning=_REASONING | {"description": "truth has one entry per segment: 1 where it is a right one, else 0"},
    geneval=_GENEVAL,
    concept=_CONCEPT,
    source_prompt=_TEXT | {"description": "what the image shows that was edited: the first of references"},
)
REQUEST = _given(
    ["items"],
    items=_list(_ITEM, minItems=1),
    scorers=_list(_TEXT) | {"description": "names of GET /v1/scorers"},
    ensemble=_TEXT | {"description": "adds a reward per item"},
    weights=_table(_WEIGHT, description="scorer name -> weight; replaces the ensemble's own"),
    timeout_ms=_COUNT | {"description": "bounds the whole request"},
    request_id=_TEXT,
)
PUT = _object(["images"], images=_list(_CONTENT, minItems=1))
DIGESTS = _object(["digests"], digests=_list(_DIGEST))

_FAILURE = {"code": _TEXT, "retryable": {"type": "boolean"}, "message": _TEXT}
_ERROR = _object(
    ["code", "retryable", "message"],
    **_FAILURE,
    digests=_list(_DIGEST) | {"description": "of unknown_image: what to upload before asking again"},
    retry_after_s={"type": "number", "minimum": 0, "description": "seconds to wait, where the service knows"},
)
FAILED = _object(["error"], error=_ERROR)
_ORIGIN = _object(["model", "preprocessing"], model=_TEXT, preprocessing=_TEXT, rule_set=_TEXT) | {
    "description": "who measured it: scores of equal origin are comparable"
}
_SCORE = _object(["value", "detail"], value=_NUMBER, detail={"type": "object"}, origin=_ORIGIN)
_OUTCOME: Schema = {"anyOf": [_SCORE, _object(["error"], error=_object(["code", "retryable", "message"], **_FAILURE))]}
RESPONSE = _object(
    ["request_id", "results"],
    request_id=_TEXT,
    results=_list(_object(["scores", "reward"], scores=_table(_OUTCOME), reward=_or_null(_OUTCOME))),
)
_SCORED = _object(["index", "scorer", "outcome"], index=_INDEX, scorer=_TEXT, outcome=_OUTCOME)
PART: Schema = {
    "anyOf": [
        _object(["request_id", "scored"], request_id=_TEXT, scored=_SCORED),
        _object(["request_id", "rewards"], request_id=_TEXT, rewards=_list(_or_null(_OUTCOME))),
        _object(["request_id", "error"], request_id=_TEXT, error=_ERROR),
    ],
    "description": "one line of the answer: an outcome, or at the end the rewards or an error",
}
_SCORER = _object(
    ["name", "needs", "low", "high", "source", "summary"],
    name=_TEXT,
    needs=_list(_TEXT),
    low=_NUMBER,
    high=_NUMBER,
    source=_TEXT,
    summary=_TEXT,
    model=_TEXT | {"description": "digest of its models' files, as in a score's origin"},
    device=_TEXT | {"description": "of a replica that is ready, as all below; absent while there is none"},
    dtype=_TEXT,
    load_s={"type": "number", "minimum": 0},
    parameter_bytes=_INDEX,
)
_ENSEMBLE = _object(
    ["by_kind", "missing", "clip_at_zero"],
    weights=_table(_WEIGHT, description="of any item; absent where there are weights by concept kind only"),
    by_kind=_table(_table(_WEIGHT), description="of items with a concept of a kind: these replace 'weights'"),
    missing={"enum": list(MISSING)},
    clip_at_zero={"type": "boolean", "description": "whether a negative value counts as 0"},
)
CATALOGUE = _object(
    ["scorers", "ensembles", "limits"],
    scorers=_list(_SCORER),
    ensembles=_table(_ENSEMBLE),
    limits=_table(_INDEX),
)
ALIVE = _object(["alive"], alive={"type": "boolean"})
_READINESS = _object(
    ["ready", "replicas", "wanted", "reason"],
    ready={"type": "boolean"},
    replicas={"type": "integer"},
    wanted={"type": "integer"},
    reason={"type": ["string", "null"]},
)
READINESS = _object(["ready", "scorers"], ready={"type": "boolean"}, scorers=_table(_READINESS))
