"""The access log names caller, request and outcome, and no secret."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from services.gateway import app
from services.gateway.core import Gateway
from services.observability import access_log
from synod.codec import CODECS
from synod.contracts import ScoreItem, ScoreRequest
from synod.images import encode_png

JSON = CODECS["application/json"]
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    """Open the log; yield a function that reads it."""
    file = tmp_path / "access.jsonl"
    access_log.open_log(file)
    yield lambda: [json.loads(line) for line in file.read_text().splitlines()]
    for handler in access_log.log.handlers:
        handler.close()
    access_log.log.handlers = []
    access_log.log.setLevel(logging.CRITICAL)


def body(**fields: Any) -> bytes:
    item = ScoreItem(encode_png(np.zeros((2, 2, 3), np.uint8)), "a secret prompt")
    return JSON.encode_request(ScoreRequest((item, item), **fields))


def post(gateway: Gateway, sent: bytes, **headers: str) -> int:
    headers |= {"content-type": "application/json"}
    with TestClient(app.build(gateway)) as client:
        return client.post("/v1/score", content=sent, headers=headers).status_code


def test_line_describes_the_request(gateway: Gateway, lines: Lines) -> None:
    sent = body(scorers=("a",), weights={"b": 1.0}, request_id="r-1")
    assert post(gateway, sent, authorization="Bearer a-secret-token") == 200
    (line,) = lines()
    assert "secret" not in json.dumps(line)
    assert line.pop("ms") >= 0
    assert line.pop("time") > 1.7e9
    assert line == {
        "request_id": "r-1",
        "route": "/v1/score",
        "caller": "anyone",
        "scorers": ["a", "b"],
        "ensemble": None,
        "items": 2,
        "outcome": "ok",
    }


def test_refused_request_is_logged_without_unknown_names(gateway: Gateway, lines: Lines) -> None:
    assert post(gateway, body(scorers=("a secret prompt",), request_id="a\nb")) == 404
    assert post(gateway, b"{") == 400
    first, second = lines()
    assert (first["outcome"], first["scorers"], first["request_id"]) == ("unknown_scorer", [], None)
    assert (second["outcome"], "items" in second) == ("invalid_request", False)
    assert second["request_id"]


def test_log_is_off_by_default(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert post(gateway, body(scorers=("a",))) == 200
    assert [record for record in caplog.records if record.name == "synod.access"] == []
