"""`benchmarks.faults --quick`: every case of the fault benchmark in small counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.__main__ import CASES, FUZZ

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not os.environ.get("SYNOD_FULL"), reason="minutes: make test-full"),
]


def faults(out: Path, *only: str) -> dict[str, Any]:
    line = [sys.executable, "-m", "benchmarks.faults", "--quick", "--out", str(out), "--only", *only]
    run = subprocess.run(line, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert out.exists(), run.stdout
    cases: dict[str, Any] = json.loads(out.read_text())["cases"]
    assert run.returncode == (0 if all(all(case["held"].values()) for case in cases.values()) else 1), run.stdout
    return cases


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return faults(tmp_path_factory.mktemp("faults") / "faults.json", *CASES, "soak")


@pytest.mark.parametrize("name", [*CASES, "soak"])
def test_every_check_holds(cases: dict[str, Any], name: str) -> None:
    assert cases[name]["held"], name
    assert all(cases[name]["held"].values()), cases[name]


@pytest.mark.parametrize("name", ["replica_killed", "gateway_killed"])
def test_a_kill_loses_no_score(cases: dict[str, Any], name: str) -> None:
    assert cases[name]["right"] == cases[name]["asked"] >= CASES[name].quick
    assert cases[name]["under_way_at_kills"]


def test_hostile_bodies_get_typed_errors(tmp_path: Path) -> None:
    found = faults(tmp_path / "fuzz.json", "fuzz")["fuzz"]
    assert found["broken"] == {}
    assert all(found["held"].values()), found
    assert found["cases"] >= FUZZ[1]
