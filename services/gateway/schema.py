"""The wire's JSON Schema and examples for OpenAPI. `synod.codec` is what reads bodies; tests hold the two together."""

from __future__ import annotations

from typing import Any

from synod.contracts import CONCEPT_KINDS, RELATIONS
from synod.errors import InvalidRequest, PayloadTooLarge, UnknownScorer, UnsupportedMedia

Schema = dict[str, Any]
# an 8x8 red PNG
RED_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP8z4AdMOEQH6QSAM1BAQ/oQeJvAAAAAElFTkSuQmCC"


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


def _list(of: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": of, **more}


_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_BASE64: Schema = {"type": "string", "contentEncoding": "base64", "description": "PNG, JPEG or WebP; bytes in msgpack"}
_RAW = _object(["data", "shape"], data=_BASE64, shape=_list({"type": "integer"}, minItems=3, maxItems=3))
_IMAGE: Schema = {"anyOf": [_BASE64, _RAW | {"description": "raw uint8 RGB rows; shape is [H, W, 3]"}]}
_CLAUSE = _object(
    ["class", "count"],
    **{
        "class": _TEXT,
        "count": {"type": "integer", "minimum": 0},
        "color": _TEXT,
        "position": {
            "type": "array",
            "prefixItems": [{"enum": list(RELATIONS)}, {"type": "integer"}],
            "description": "relation, index of the clause it relates to",
        },
    },
)
_GENEVAL = _object(["tag", "include"], tag=_TEXT, include=_list(_CLAUSE), exclude=_list(_CLAUSE))
_REASONING = _object(["text", "segments", "truth"], text=_TEXT, segments=_list(_TEXT), truth=_list(_NUMBER))
_CONCEPT = _object(["kind"], kind={"enum": list(CONCEPT_KINDS)}, class_word=_TEXT, token=_TEXT)
_ITEM = _object(
    [],
    image=_IMAGE,
    prompt=_TEXT,
    references=_list(_IMAGE),
    reasoning=_REASONING | {"description": "truth has one entry per segment: 1 where it is a right one, else 0"},
    geneval=_GENEVAL,
    concept=_CONCEPT,
)
REQUEST = _object(
    ["items"],
    items=_list(_ITEM, minItems=1),
    scorers=_list(_TEXT) | {"description": "names of GET /v1/scorers"},
    ensemble=_TEXT | {"description": "adds a reward per item, by its concept's kind"},
    weights={
        "type": "object",
        "additionalProperties": {"type": "number", "minimum": 0},
        "description": "scorer name -> weight; replaces the ensemble's own",
    },
    timeout_ms={"type": "integer", "minimum": 1},
    request_id=_TEXT,
)
_ERROR = _object(["code", "retryable", "message"], code=_TEXT, retryable={"type": "boolean"}, message=_TEXT)
_FAILED = _object(["error"], error=_ERROR)
_OUTCOME: Schema = {"anyOf": [_object(["value", "detail"], value=_NUMBER, detail={"type": "object"}), _FAILED]}
RESPONSE = _object(
    ["request_id", "results"],
    request_id=_TEXT,
    results=_list(
        _object(
            ["scores", "reward"],
            scores={"type": "object", "additionalProperties": _OUTCOME},
            reward={"anyOf": [_OUTCOME, {"type": "null"}]},
        )
    ),
)
REQUEST_EXAMPLES: dict[str, Schema] = {
    "two scorers": {
        "summary": "Two scorers over one picture",
        "value": {
            "items": [{"image": RED_PNG, "prompt": "a red square", "references": [RED_PNG]}],
            "scorers": ["ber", "der"],
        },
    },
    "reward": {
        "summary": "Sync-R1's reward of a person (eq. 34)",
        "value": {
            "items": [
                {
                    "image": RED_PNG,
                    "prompt": "<ann> wearing her hat",
                    "references": [RED_PNG],
                    "reasoning": {
                        "text": "ann has a red hat",
                        "segments": ["a red hat", "a blue bag"],
                        "truth": [1, 0],
                    },
                    "concept": {"kind": "person", "class_word": "person", "token": "<ann>"},
                }
            ],
            "ensemble": "sync_r1",
            "timeout_ms": 30000,
        },
    },
    "geneval": {
        "summary": "GenEval's verdict",
        "value": {
            "items": [
                {
                    "image": RED_PNG,
                    "geneval": {"tag": "colors", "include": [{"class": "ball", "count": 1, "color": "red"}]},
                }
            ],
            "scorers": ["geneval"],
        },
    },
}
RESPONSE_EXAMPLE: Schema = {
    "request_id": "3f2a",
    "results": [
        {
            "scores": {
                "ber": {"value": 0.41, "detail": {}},
                "der": {
                    "error": {
                        "code": "missing_input",
                        "retryable": False,
                        "message": "scorer 'der' needs references; the item has none",
                    }
                },
            },
            "reward": {"error": {"code": "missing_input", "retryable": False, "message": "the reward needs 'der'"}},
        }
    ],
}


def _answer(description: str, schema: Schema, **more: Any) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema, **more}}}


_REFUSALS: dict[int | str, dict[str, Any]] = {
    kind.http_status: _answer(meaning, _FAILED)
    for kind, meaning in (
        (InvalidRequest, "The request cannot be read, or asks for nothing"),
        (UnknownScorer, "A scorer or ensemble that is not served here"),
        (PayloadTooLarge, "Body, item count or text over a limit"),
        (UnsupportedMedia, "A content type without a codec"),
    )
}
SCORE: dict[str, Any] = {
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": REQUEST, "examples": REQUEST_EXAMPLES},
                "application/msgpack": {"schema": REQUEST},
            },
        }
    },
    "responses": {200: _answer("One result per item, in order", RESPONSE, example=RESPONSE_EXAMPLE), **_REFUSALS},
}
_DIGEST: Schema = {"type": "string", "pattern": "^blake2b-256:[0-9a-f]{64}$"}
IMAGES: dict[str, Any] = {
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                kind: {"schema": _object(["images"], images=_list(_IMAGE, minItems=1))}
                for kind in ("application/json", "application/msgpack")
            },
        }
    },
    "responses": {
        200: _answer("One digest per picture, in order", _object(["digests"], digests=_list(_DIGEST))),
        **{status: answer for status, answer in _REFUSALS.items() if status != UnknownScorer.http_status},
    },
}
SCORERS: dict[str, Any] = {
    "responses": {
        200: _answer(
            "What this plane serves",
            _object(
                ["scorers", "ensembles", "limits"],
                scorers=_list(
                    _object(
                        ["name", "needs", "low", "high", "source", "summary"],
                        name=_TEXT,
                        needs=_list(_TEXT),
                        low=_NUMBER,
                        high=_NUMBER,
                        source=_TEXT,
                        summary=_TEXT,
                    )
                ),
                ensembles={"type": "object"},
                limits={"type": "object", "additionalProperties": {"type": "integer"}},
            ),
        )
    }
}
HEALTH: dict[str, Any] = {"responses": {200: _answer("Alive", _object(["alive"], alive={"type": "boolean"}))}}
_READINESS = _object(
    ["ready", "replicas", "wanted", "reason"],
    ready={"type": "boolean"},
    replicas={"type": "integer"},
    wanted={"type": "integer"},
    reason={"type": ["string", "null"]},
)
_READY = _object(
    ["ready", "scorers"],
    ready={"type": "boolean"},
    scorers={"type": "object", "additionalProperties": _READINESS},
)
READY: dict[str, Any] = {"responses": {200: _answer("Ready", _READY), 503: _answer("Not yet, with reasons", _READY)}}
