"""The real architectures: their published sizes, and the benchmark on small models of the same families."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import real_models, real_size
from services import settings

MILLION = 10**6


@pytest.mark.parametrize("name", [*real_size.MODELS])
def test_settings_are_sync_r1s_with_local_models(name: str, tmp_path: Path) -> None:
    real_size.write_models(name, tmp_path, tiny=True)
    found = real_size.settings_of(name, tmp_path, tiny=True)
    shipped = settings.load(real_size.CONFIG, {}).scorers.get(name)
    if shipped is not None:
        assert found.serving == shipped.serving
    assert str(tmp_path) in found.model_dump_json()


def test_random_states_are_finite_and_the_same_each_time() -> None:
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


def test_a_run_writes_each_scorer_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    line = ["--tiny", "--quick", "--only", "der", "--dir", str(tmp_path), "--out", str(out)]
    assert real_size.main(line) == 0
    one = json.loads(out.read_text())["scorers"]["der"]
    assert one["dtype"] == "bfloat16"
    assert one["held_bytes"] == 2 * one["parameters"]
    assert one["load_ratio"] == pytest.approx(one["load_peak_bytes"] / one["weight_bytes"], abs=1e-3)
    case = one["sizes"]["512"]
    assert case["seconds_per_image"] > 0
    assert 0 < case["model_share"] < 1
    assert case["batch_difference"] < 0.02
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert real_size.main(line) == 0
    assert "measured before" in capsys.readouterr().out
