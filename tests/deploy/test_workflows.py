"""The workflows: actionlint finds nothing, they have no more rights than they need, what they name is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").iterdir())


def findings(text: str) -> str:
    """What actionlint prints of a workflow; empty when there is nothing to say. Programs of steps are left to their own
    tests: its helpers for them may be installed or not."""
    command = [str(Path(sys.executable).parent / "actionlint"), "-no-color", "-shellcheck=", "-pyflakes=", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT).stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actionlint_finds_nothing(path: Path) -> None:
    assert findings(path.read_text()) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("timeout-minutes:", "timeout:", "unexpected key"),
        ("runs-on: ubuntu-24.04", "runs-on: ubuntu-4.24", "unknown"),
        ("matrix.image ==", "matrix.photo ==", "not defined"),
        ("permissions: {contents: read}", "permissions: {contents: reed}", "reed"),
    ],
)
def test_a_planted_mistake_is_found(right: str, wrong: str, told: str) -> None:
    text = (ROOT / ".github/workflows/test.yml").read_text()
    assert right in text
    assert told in findings(text.replace(right, wrong))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_and_ends_in_time(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job and job["timeout-minutes"] <= 120 for job in workflow["jobs"].values())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_its_steps_name_is_there(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    for job in workflow["jobs"].values():
        images = job.get("strategy", {}).get("matrix", {}).get("image", [])
        assert all((ROOT / f"deploy/docker/{image}.Dockerfile").exists() for image in images)
        for step in job["steps"]:
            for name in re.findall(r"(?<![\w/$\"])(?:\.ci|helm|deploy)/[\w./-]+\b", step.get("run", "")):
                assert (ROOT / name).exists(), name
