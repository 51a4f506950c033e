"""A judge that the judged scorers ask over HTTP: one server a module, forgetful between tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.judges import JudgeServer, judging


@pytest.fixture(scope="module")
def running() -> Iterator[JudgeServer]:
    with judging() as server:
        yield server


@pytest.fixture
def server(running: JudgeServer) -> JudgeServer:
    running.script.clear()
    running.asked.clear()
    return running
