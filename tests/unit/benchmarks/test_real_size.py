"""The benchmark of published scorers, on small models of the same families."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import real_models, real_size
from services.scorers import registry
from services.scorers.base import ScorerSpec
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem

MILLION = 10**6


def test_random_states_are_finite_and_reproducible() -> None:
    def build() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4), torch.nn.Embedding(3, 5))

    first, second = (real_models.random_state(build, torch.float16) for _ in range(2))
    for key, value in build().state_dict().items():
        assert first[key].shape == value.shape
        assert torch.equal(first[key], second[key])
        assert first[key].isfinite().all()
    assert first["1.weight"].tolist() == [1] * 4
    assert first["1.running_var"].tolist() == [1] * 4
    assert first["0.bias"].tolist() == [0] * 4
    assert 0.1 < first["0.weight"].float().std() < 0.8


@pytest.mark.slow
def test_a_run_writes_its_figures_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    line = ["--tiny", "--quick", "--only", "der", "--dir", str(tmp_path), "--out", str(out)]
    assert real_size.main(line) == 0
    one = json.loads(out.read_text())["scorers"]["der"]
    assert one["dtype"] == "bfloat16"
    assert one["held_bytes"] == 2 * one["parameters"]
    assert one["load_ratio"] == pytest.approx(one["load_peak_bytes"] / one["weight_bytes"], abs=1e-3)
    case = one["sizes"]["512"]
    assert case["seconds_per_image"] > 0
    assert case["direct_seconds_per_image_in_batch"] > 0
    assert case["outside_modules_s_per_image"] > 0
    assert case["batch_difference"] < 0.02
    assert one["other_dtype"]["dtype"] == "float32"
    assert one["other_dtype"]["seconds_per_image"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert real_size.main(line) == 0
    assert "already measured" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tier", "geneval", "pickscore"])
def test_items_score_differently_and_modules_can_be_rerun(name: str, tmp_path: Path) -> None:
    real_size.write_models(name, tmp_path, tiny=True)
    scorer = registry.build(name, real_size.settings_of(name, tmp_path, "float32", tiny=True))
    case = real_size.timed(scorer, 64, quick=True)
    assert len(set(case["values"])) == 2
    assert case["batch_difference"] < 1e-4
    with real_size.recording() as calls:
        scorer.score(real_size.items_of(1, 64))
    assert calls.made
    with real_size.recording() as again:
        calls.again()
    assert [module for module, *_ in again.made] == [module for module, *_ in calls.made]


class Constant:
    spec = ScorerSpec("constant", ("image",), 0.0, 1.0, "a test", "a test")

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [Score(0.5)] * len(items)


def test_equal_values_are_refused() -> None:
    with pytest.raises(RuntimeError, match="not all different"):
        real_size.timed(Constant(), 8, quick=True)


def test_geneval_is_compared_by_its_objects_mean_score() -> None:
    found = [{"score": 0.5, "color": "red"}, {"score": 0.7, "color": None}]
    assert real_size.compared(Score(0.0, {"objects": found})) == pytest.approx(0.6)
    assert real_size.compared(Score(0.25)) == 0.25
    assert real_size.compared(Score(0.25, {"query": 3})) == 0.25


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Score(0.0, {"objects": [{"score": 0.5, "color": None}]}), "did not run: 1 objects"),
        (Score(0.0, {"objects": []}), "did not run: 0 objects"),
        (ScoreFailure("scorer_failed", "tired"), "tired"),
    ],
)
def test_incomparable_outcomes_are_refused(outcome: Outcome, reason: str) -> None:
    with pytest.raises(RuntimeError, match=reason):
        real_size.compared(outcome)


def row(name: str, one: dict[str, Any]) -> str:
    """Return the scorer's line in the table of docs/scorers.md."""
    small, large = one["sizes"]["512"], one["sizes"]["1024"]
    cells = (
        f"{one['parameters'] / MILLION:.0f} M",
        f"{one['weight_bytes'] / 1e9:.2f} GB",
        f"{one['load_ratio']:.2f}",
        one["dtype"],
        f"{small['seconds_per_image']:.2f}",
        f"{large['seconds_per_image']:.2f}",
        f"{one['other_dtype']['seconds_per_image']:.2f}",
        f"{small['seconds_per_image_in_batch']:.2f}",
        f"{small['share_of_direct']:.2f}",
        f"{small['batch_difference']:.4f}",
    )
    return f"| {name} | {' | '.join(cells)} |"


def test_the_docs_figures_are_the_measured_ones() -> None:
    report = json.loads((real_size.ROOT / "benchmarks/results/real_size.json").read_text())
    rows = [row(name, one) for name, one in report["scorers"].items()]
    assert rows
    assert "\n".join(rows) in (real_size.ROOT / "docs/scorers.md").read_text()
