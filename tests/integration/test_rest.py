"""REST against a real service: both formats, per-item failures, ensembles and bad input."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from synod.contracts import Concept, ScoreItem
from synod.images import encode_png
from tests.collector import Collector


def grey(level: int, size: int = 8) -> np.ndarray:  # type: ignore[type-arg]
    return np.full((size, size, 3), level, np.uint8)


def image(level: int) -> bytes:
    return encode_png(grey(level))


def body(*items: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"items": items, **fields}).encode()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def huge_png() -> bytes:
    """Return a PNG whose header declares 30,000 x 30,000 RGB pixels, 2.7 GB when decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(2**20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


ITEM = {"image": b64(image(51)), "prompt": "0.5"}


def test_json_and_msgpack_give_equal_answers(service: Any) -> None:
    rng = np.random.default_rng(0)
    items = [
        ScoreItem(image=encode_png(pixels), prompt=str(i / 8), references=(pixels,), concept=Concept("person"))
        for i, pixels in enumerate(rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8))
    ]
    asked = {"scorers": ("bright", "der"), "ensemble": "council", "request_id": "same"}
    answers = [service.score(*items, kind=kind, **asked) for kind in ("application/json", "application/msgpack")]
    for one, other in zip(answers[0].results, answers[1].results, strict=True):
        assert {n: s.value for n, s in one.scores.items()} == {n: s.value for n, s in other.scores.items()}
        assert one.reward.value == other.reward.value
    assert [a.request_id for a in answers] == ["same", "same"]
    for item, result in zip(items, answers[0].results, strict=True):
        assert list(result.scores) == ["bright", "der", "number", "face"]
        assert result.scores["bright"].value == pytest.approx(item.references[0].mean() / 255)
        assert result.scores["der"].value == pytest.approx(1.0, abs=1e-4)  # an image against itself


def test_scorers_share_large_payloads(service: Any) -> None:
    """Items with more than 1 MB of pixels travel through the object store."""
    items = [ScoreItem(encode_png(grey(i, 200)), references=(encode_png(grey(i, 200)),)) for i in range(12)]
    results = service.score(*items, scorers=("bright", "face")).results
    assert [r.scores["bright"].value for r in results] == pytest.approx([i / 255 for i in range(12)])
    assert [r.scores["face"].value for r in results] == pytest.approx([i / 255 for i in range(12)])


def test_each_bad_item_fails_alone(service: Any) -> None:
    good = ITEM | {"references": [b64(image(102))], "concept": {"kind": "person"}}
    noise = encode_png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    bad = {
        "not an image": good | {"image": b64(b"hello there, no image")},
        "truncated": good | {"image": b64(noise[:-2000])},
        "30k": good | {"image": b64(huge_png())},
        "bad reference": good | {"references": [b64(b"nothing")]},
        "no prompt": {k: v for k, v in good.items() if k != "prompt"},
        "no reference": {k: v for k, v in good.items() if k != "references"},
        "no image": {k: v for k, v in good.items() if k != "image"},
        "poison": good | {"prompt": "poison"},
        "not finite": good | {"prompt": "nan"},
    }
    items = [item for one in bad.values() for item in (good, one)] + [good]
    answer = service.post(body(*items, ensemble="council")).json()
    expected = 0.5 * 0.5 + 0.25 * 0.2 + 0.25 * 0.4
    assert [r["reward"]["value"] for r in answer["results"][::2]] == pytest.approx([expected] * (len(bad) + 1))
    failed = dict(zip(bad, answer["results"][1::2], strict=True))
    codes = {
        name: {scorer: outcome["error"]["code"] for scorer, outcome in result["scores"].items() if "error" in outcome}
        for name, result in failed.items()
    }
    everywhere = ("number", "bright", "face")
    assert codes == {
        "not an image": dict.fromkeys(everywhere, "bad_image"),
        "truncated": dict.fromkeys(everywhere, "bad_image"),
        "30k": dict.fromkeys(everywhere, "image_too_large"),
        "bad reference": dict.fromkeys(everywhere, "bad_image"),
        "no prompt": {"number": "missing_input"},
        "no reference": {"face": "missing_input"},
        "no image": {"bright": "missing_input", "face": "missing_input"},
        "poison": {"number": "scorer_failed"},
        "not finite": {"number": "non_finite"},
    }
    assert all("error" in r["reward"] for r in failed.values())


@pytest.mark.parametrize(
    ("sent", "status", "code", "word"),
    [
        (b"{", 400, "invalid_request", "JSON"),
        (body(ITEM, scorers=["nobody"]), 404, "unknown_scorer", "bright, colocated, der, face, frail, frail_2"),
        (body(ITEM, ensemble="nobody"), 404, "unknown_scorer", "council, lenient"),
        (body(*[ITEM] * 65, scorers=["bright"]), 413, "payload_too_large", "max_items"),
    ],
)
def test_a_bad_request_is_refused_with_its_reason(service: Any, sent: bytes, status: int, code: str, word: str) -> None:
    answer = service.post(sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["retryable"]) == (status, code, False)
    assert word.lower() in error["message"].lower()


def test_an_oversized_body_is_refused_declared_or_streamed(service: Any) -> None:
    large = body(ITEM, scorers=["bright"], request_id="x" * 2**22)
    declared = service.post(large)
    streamed = service.http.post(
        "/v1/score",
        content=(large[i : i + 65536] for i in range(0, len(large), 65536)),
        headers={"content-type": "application/json"},
    )
    for answer in (declared, streamed):
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
        assert "2097152" in answer.json()["error"]["message"]


def test_discovery_health_and_documents(service: Any) -> None:
    scorers = service.http.get("/v1/scorers").json()
    frail = ["frail", "frail_2", "frail_3", "frail_4", "frail_5"]
    assert [one["name"] for one in scorers["scorers"]] == ["bright", "colocated", "number", *frail, "face", "der"]
    listed = {one["name"]: one for one in scorers["scorers"]}
    assert (listed["der"]["device"], listed["der"]["dtype"]) == ("cpu", "float32")
    assert listed["der"]["parameter_bytes"] > 10_000
    assert listed["der"]["load_s"] > 0
    assert listed["colocated"]["parameter_bytes"] == 0, "a fake has no models"
    assert "device" not in listed["colocated"]
    scored = service.score(ScoreItem(image=grey(9), references=(grey(8),)), scorers=("der",)).results[0].scores["der"]
    assert listed["der"]["model"] == scored.origin.model
    assert scorers["ensembles"]["council"]["by_kind"]["animal"]["face"] == 0.0
    assert scorers["ensembles"]["lenient"]["weights"]["face"] == 0.25
    assert service.http.get("/healthz").json() == {"alive": True}
    assert service.ready()["ready"] is True
    assert "/v1/score" in service.http.get("/openapi.json").json()["paths"]
    assert "/v1/score" in service.http.get("/docs").text
    assert service.http.get("/nowhere").status_code == 404


def test_a_colocated_scorer_shares_process_and_gpu(service: Any) -> None:
    """`bright` and `number` hold the whole GPU; `colocated` needs no share and forms its own batches."""
    items = [ScoreItem(image=grey(level), prompt="0.5") for level in range(12)]
    scores = [result.scores for result in service.score(*items, scorers=("bright", "colocated", "number")).results]
    pids = {name: {one[name].detail["pid"] for one in scores} for name in ("bright", "colocated", "number")}
    assert pids["colocated"] == pids["bright"] != pids["number"]
    assert [one["colocated"].value for one in scores] == [one["bright"].value for one in scores]
    largest = {name: max(one[name].detail["batch"] for one in scores) for name in ("bright", "colocated")}
    assert largest["colocated"] <= 4 < largest["bright"]
    assert service.ready()["scorers"]["colocated"] == {"ready": True, "replicas": 1, "wanted": 1, "reason": None}


def test_one_trace_spans_gateway_and_replica(service: Any, collector: Collector, eventually: Any) -> None:
    trace, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    answer = service.post(body(ITEM, scorers=["number"]), traceparent=f"00-{trace}-{caller}-01")
    assert answer.headers["x-synod-trace-id"] == trace
    eventually(lambda: len(collector.spans) >= 8)
    assert collector.tree(caller) == {
        "POST /v1/score": {
            "decode": {},
            "scorer number": {
                "queue": {},
                "call": {"replica number": {"wait": {}, "batch number": {}, "device": {}}},
            },
        }
    }
    services = {span.name: span.service for span in collector.spans}
    assert services["call"] == "synod-gateway"
    assert services["replica number"] == services["batch number"] == "synod-replica"
    assert {span.trace for span in collector.spans} == {trace}
