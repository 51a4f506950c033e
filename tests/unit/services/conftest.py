"""A judge over HTTP: one server per module, reset before each test."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.judges import JudgeServer, judging


@pytest.fixture(scope="module")
def running() -> Iterator[JudgeServer]:
    with judging() as server:
        yield server


@pytest.fixture
def server(running: JudgeServer) -> JudgeServer:
    while running.open:  # callers of the test before, which gave up
        time.sleep(0.005)
    for record in (running.script, running.asked, running.headers):
        record.clear()
    running.usage, running.gate, running.max_concurrent = {"prompt_tokens": 90, "completion_tokens": 10}, None, 0
    return running
