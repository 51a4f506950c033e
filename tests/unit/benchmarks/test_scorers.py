"""The in-process benchmark of scorers: its figures and exit status."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scorers
from services.scorers import registry
from services.scorers.base import ScorerSpec
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem


def run(out: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    status = scorers.main([*arguments, "--no-ray", "--out", str(out)])
    return status, json.loads(out.read_text())


def test_a_quick_run_measures_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = run(tmp_path / "new" / "it.json", "--quick", "--scorers", "der", "--repeats", "1")
    assert status == 0
    assert set(report) == {"command", "hardware", "summary", "cases", "through_ray"}
    assert {"cpu", "cores", "torch"} <= set(report["hardware"])
    (case,) = report["cases"]
    assert {name: case.pop(name) for name in ("scorer", "batch", "repeats", "failures")} == {
        "scorer": "der",
        "batch": 8,
        "repeats": 1,
        "failures": 0,
    }
    assert set(case) == {"direct_items_per_s", "batched_items_per_s", "share_of_direct"}
    assert all(value > 0 for value in case.values())
    assert case["share_of_direct"] == pytest.approx(case["batched_items_per_s"] / case["direct_items_per_s"])
    summary = report["summary"]
    assert summary["share_of_direct"] == {"der": pytest.approx(case["share_of_direct"], abs=1e-3)}
    assert (summary["goal"], summary["decode_ms"] > 0, report["through_ray"]) == (0.9, True, [])
    assert capsys.readouterr().out.startswith("der ")


class Tiring:
    """A scorer that fails an item of every call but the first."""

    spec = ScorerSpec("der", ("image",), 0.0, 1.0, "a test", "a test")
    calls = 0

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        self.calls += 1
        if self.calls == 1:
            return [Score(0.5)] * len(items)
        return [Score(0.5)] * (len(items) - 1) + [ScoreFailure("scorer_failed", "tired")]

    def _embed(self, images: Sequence[Any]) -> None: ...


def test_the_exit_status_is_1_if_an_item_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "build", lambda name, settings: Tiring())
    arguments = ("--scorers", "der", "--batches", "2", "3", "--repeats", "2")
    status, report = run(tmp_path / "it.json", *arguments)
    assert status == 1
    assert [(case["batch"], case["repeats"], case["failures"]) for case in report["cases"]] == [(2, 2, 3), (3, 2, 3)]


def test_the_docs_figures_are_the_measured_ones() -> None:
    report = json.loads((scorers.ROOT / "benchmarks/results/scorers_cpu.json").read_text())
    service = {case["scorer"]: case["items_per_s"] for case in report["through_ray"]}
    rows = [
        f"| {name} | {case['direct_items_per_s']:.0f} | {case['batched_items_per_s']:.0f} | {service[name]:.0f} "
        f"| {report['summary']['share_of_direct'][name]:.2f} |"
        for case in report["cases"]
        if case["batch"] == 32 and (name := case["scorer"])
    ]
    text = (scorers.ROOT / "docs/scorers.md").read_text()
    assert len(rows) == 5
    assert "\n".join(rows) in text
    assert f"scorers, in {report['summary']['decode_ms']:.2f} ms" in text
