"""`make demo` as a newcomer runs it, with the real embedded models, but fewer steps and prompts."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.cluster.processes import users_of

ROOT = Path(__file__).parents[2]
ONLY_IN_FULL = pytest.mark.skipif(not os.environ.get("SYNOD_FULL"), reason="a minute: make test-full")
EMBEDDED = ROOT / "embedded"


def start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "embedded.demo", "--out", str(out), "--steps", "2", "--prompts", "6"]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    ends_s = time.monotonic() + 100
    while not any(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < ends_s, f"no {folder / pattern}"
        time.sleep(0.1)


def assert_nothing_left(out: Path, temp_dir: Path) -> None:
    assert not temp_dir.exists()
    assert users_of(temp_dir) == []
    assert users_of(out) == []


@pytest.mark.timeout(300)
def test_the_demo_scores_every_sample_and_cleans_up(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for(tmp_path, "service/service.json", process)
    temp_dir = Path(json.loads((tmp_path / "service/service.json").read_text())["temp_dir"])
    output, _ = process.communicate()
    assert process.returncode == 0, output
    summary = json.loads((tmp_path / "summary.json").read_text())
    samples = [
        sample
        for name in ("data/samples/samples.json", "photographs.json")
        for sample in json.loads((EMBEDDED / name).read_text())
    ]
    assert set(summary["scorers"]) == {"tier", "ber", "der", "fer", "geneval"}
    assert all(math.isfinite(mean) for mean in summary["scorers"].values())
    assert summary["images_scored"] == len(samples)
    assert 0.6 < summary["photographs"]["der"] < 0.8  # three near 1 and one near 0
    assert "data:image/jpeg" in (tmp_path / "report.html").read_text()
    assert summary["score_failures"] == 0
    assert set(summary["seconds"]) == {"start", "score", "train", "stop", "total"}
    assert summary["steps"] == 2
    for when in ("reward_before", "reward_after"):
        assert set(summary[when]) == {"mean", "stderr", "n"}
        assert summary[when]["n"] == 6
        assert 0 <= summary[when]["mean"] <= 1
    assert summary["reward_change"]["n"] == 6
    means = [summary[f"reward_{when}"]["mean"] for when in ("before", "after")]
    assert summary["reward_change"]["mean"] == pytest.approx(means[1] - means[0])
    assert summary["dgs"]["previews"] >= 18
    assert 0 < summary["dgs"]["pass_rate"] <= 1
    assert summary["dgs"]["denoising_steps_saved_ratio"] == 0  # the first groups of each pathway measure
    assert "torch" in summary["versions"]
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="card') == len(samples) + 1  # and the grid, of class "cards"
    assert 'class="face"' in page
    assert 'class="object"' in page
    assert_nothing_left(tmp_path, temp_dir)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("session_latest", id="head"),
        pytest.param("session_latest/logs/serve/replica_*", id="models", marks=ONLY_IN_FULL),
        pytest.param("train/settings.json", id="training", marks=ONLY_IN_FULL),
    ],
)
def test_ctrl_c_leaves_no_process(tmp_path: Path, moment: str) -> None:
    """While Ray's head starts, while replicas load, and while the policy trains."""
    process = start(tmp_path)
    wait_for(tmp_path, "service/service.json", process)
    temp_dir = Path(json.loads((tmp_path / "service/service.json").read_text())["temp_dir"])
    wait_for(tmp_path if moment.startswith("train") else temp_dir, moment, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert_nothing_left(tmp_path, temp_dir)
