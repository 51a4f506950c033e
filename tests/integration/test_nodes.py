"""A service over three nodes: `benchmarks.nodes --quick` in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.skipif(not os.environ.get("SYNOD_FULL"), reason="a minute: make test-full")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("nodes") / "nodes.json"
    line = [sys.executable, "-m", "benchmarks.nodes", "--quick", "--out", str(out)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=280, check=False)
    assert out.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, Any] = json.loads(out.read_text())["cases"]
    return found


@pytest.mark.parametrize("name", ["scaled", "upgraded", "node_killed"])
def test_every_check_holds(cases: dict[str, Any], name: str) -> None:
    assert cases[name]["held"]
    assert all(cases[name]["held"].values()), cases[name]
