"""The script for GPU machines: a run on tiny models, and the sizes of its full models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_scorers

FILE = Path(gpu_scorers.__file__)
MILLION = 10**6


@pytest.mark.slow
def test_the_file_runs_without_the_project(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    copied = tmp_path / FILE.name
    copied.write_text(FILE.read_text())
    options = ["--quick", "--tiny", "--device", "cpu", "--no-compile", "--models", "der", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, copied.name, *options], cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert "--quick" in report["command"]
    assert report["hardware"]["torch"]
    one = report["models"]["der"]
    assert one["parameter_bytes"] == 2 * one["parameters"]
    for case in one["cases"]:
        assert case["items_per_s"] > 0
        assert case["items_per_s_from_jpeg"] > 0
        assert case["share_of_matmul"] == pytest.approx(
            one["flops_per_item"] * case["items_per_s"] / (report["matmul_tflops"] * 1e12)
        )
        assert case["peak_bytes"] is None, "a CPU has no such figure"


@pytest.mark.slow
def test_scorers_are_measured_alone_and_together(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = ["--quick", "--tiny", "--device", "cpu", "--models", "--scorers", "tier", "ber", "der", "fer"]
    assert gpu_scorers.main([*options, "--dir", str(tmp_path), "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["scorers"].keys() == {"tier", "ber", "der", "fer", "sync_r1"}
    for one in report["scorers"].values():
        assert [case["batch"] for case in one["cases"]] == [1, 2]
        for case in one["cases"]:
            share = one["flops_per_item"] * case["items_per_s"] / (report["matmul_tflops"] * 1e12)
            assert case["share_of_matmul"] == pytest.approx(share)
    assert len([line for line in report["goals"] if "sync_r1" in line]) == 1
    assert any("peak memory" in line for line in report["missing"])
    assert "missing: models ber share_of_matmul" in report["missing"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"], "models are removed"


@pytest.mark.parametrize(
    ("name", "published"),
    [("tier", 109), ("ber", 1172), ("der", 86.6), ("fer", 23.5), ("geneval_detector", 68.7), ("geneval_colour", 427.6)],
)
def test_models_have_their_published_sizes(name: str, published: float) -> None:
    assert gpu_scorers.parameters(name) == pytest.approx(published * MILLION, rel=0.01)
