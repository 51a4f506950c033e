"""Check the workflows with actionlint, their permissions, and the files that they use."""

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
    """Return actionlint's findings for a workflow. Steps' scripts are not checked: its helpers may not be installed."""
    command = [str(Path(sys.executable).parent / "actionlint"), "-no-color", "-shellcheck=", "-pyflakes=", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT).stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_pass_actionlint(path: Path) -> None:
    assert findings(path.read_text()) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("timeout-minutes:", "timeout:", "unexpected key"),
        ("runs-on: ubuntu-24.04", "runs-on: ubuntu-4.24", "unknown"),
        ("matrix.image ==", "matrix.photo ==", "not defined"),
        ("permissions: {contents: read}", "permissions: {contents: reed}", "reed"),
    ],
)
def test_a_planted_mistake_is_found(right: str, wrong: str, message: str) -> None:
    text = (ROOT / ".github/workflows/test.yml").read_text()
    assert right in text
    assert message in findings(text.replace(right, wrong))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_read_only_and_have_a_timeout(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job and job["timeout-minutes"] <= 120 for job in workflow["jobs"].values())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_files_used_by_steps_exist(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    for job in workflow["jobs"].values():
        images = job.get("strategy", {}).get("matrix", {}).get("image", [])
        assert all((ROOT / f"deploy/docker/{image}.Dockerfile").exists() for image in images)
        for step in job["steps"]:
            for name in re.findall(r"(?<![\w/$\"])(?:\.ci|helm|deploy)/[\w./-]+\b", step.get("run", "")):
                assert (ROOT / name).exists(), name
