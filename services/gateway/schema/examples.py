"""Bodies that a reader of the OpenAPI document can copy."""

from __future__ import annotations

from typing import Any

# an 8x8 red PNG
RED_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP8z4AdMOEQH6QSAM1BAQ/oQeJvAAAAAElFTkSuQmCC"
DIGEST = "blake2b-256:6679487f24b5cafd182e343d33dfbf8e5566799bd4f8031d4e29badf124632fa"  # of its bytes


def _request(summary: str, item: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"summary": summary, "value": {"items": [item], **fields}}


REQUEST_EXAMPLES: dict[str, dict[str, Any]] = {
    "two scorers": _request(
        "Two scorers over one image",
        {"image": RED_PNG, "prompt": "a red square", "references": [RED_PNG]},
        scorers=["ber", "der"],
    ),
    "reward": _request(
        "Sync-R1's reward of a person (eq. 34)",
        {
            "image": RED_PNG,
            "prompt": "<ann> wearing her hat",
            "references": [RED_PNG],
            "reasoning": {"text": "ann has a red hat", "segments": ["a red hat", "a blue bag"], "truth": [1, 0]},
            "concept": {"kind": "person", "class_word": "person", "token": "<ann>"},
        },
        ensemble="sync_r1",
        timeout_ms=30000,
    ),
    "by digest": _request(
        "Images that PUT /v1/images put before",
        {"image": {"digest": DIGEST}, "references": [{"digest": DIGEST}]},
        scorers=["der"],
        request_id="rollout-17",
    ),
    "geneval": _request(
        "GenEval's verdict",
        {"image": RED_PNG, "geneval": {"tag": "colors", "include": [{"class": "ball", "count": 1, "color": "red"}]}},
        scorers=["geneval"],
    ),
}
_MISSING = {"code": "missing_input", "retryable": False}
_SCORES = {
    "ber": {"value": 0.41, "detail": {}, "origin": {"model": DIGEST, "preprocessing": "1"}},
    "der": {"error": _MISSING | {"message": "scorer 'der' needs references; the item has none"}},
}
RESPONSE_EXAMPLE: dict[str, Any] = {
    "request_id": "3f2a",
    "results": [{"scores": _SCORES, "reward": {"error": _MISSING | {"message": "the reward needs 'der'"}}}],
}
PARTS_EXAMPLE = (
    '{"request_id":"3f2a","scored":{"index":0,"scorer":"ber","outcome":{"value":0.41,"detail":{}}}}\n'
    '{"request_id":"3f2a","rewards":[null]}\n'
)
UNKNOWN_IMAGE_EXAMPLE: dict[str, Any] = {
    "error": {"code": "unknown_image", "retryable": True, "message": "1 image is unknown", "digests": [DIGEST]}
}
OVERLOADED_EXAMPLE: dict[str, Any] = {
    "error": {"code": "overloaded", "retryable": True, "message": "the queue of 'ber' is full", "retry_after_s": 2.5}
}
