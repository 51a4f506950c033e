"""The benchmark of the small flow-matching model: its verdicts by hand, and its command with a tiny pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import flow
from benchmarks.screening_table import with_noise_of
from tests.unit.trainer import reward_services
from tests.unit.trainer.reward_services import Judge, serve
from tests.unit.trainer.tiny_flow import smoothness, write_pipeline
from trainer.evaluate.compare import Paired, Summary
from trainer.policy.flow import loading
from trainer.policy.flow.segments import LatentSegment, Sampler

SCORERS = [{"name": "geneval", "needs": ["image", "geneval"]}] + [
    {"name": name, "needs": ["image"]} for name in ("smaller", "larger")
]


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return write_pipeline(tmp_path / "model", "sana")


def test_parts_are_measured_from_the_command_line(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All parts into one file; what is there stays when another part is measured."""
    monkeypatch.setitem(reward_services.CATALOGUE, "scorers", SCORERS)
    monkeypatch.setattr("benchmarks.flow.commit", lambda: "0000000")
    monkeypatch.setattr("benchmarks.flow.JPEG_STEPS", 1)
    monkeypatch.setattr("benchmarks.flow.RHO", flow.Plan(3, (1, 2, 3), 2, flow.KB))
    for name, value in {"POLICY__MODEL": str(pipeline), "POLICY__SAMPLER__DENOISING_STEPS": "4"}.items():
        monkeypatch.setenv(f"SYNOD__TRAINER__{name}", value)
    out = tmp_path / "found.json"
    with serve(Judge(smoothness)) as url:
        given = ["--url", url, "--runs", str(tmp_path / "runs"), "--out", str(out), "--prompts", "3"]
        assert flow.main(["--only", "start", "rho", *given, "--hours", "0"]) == 1
        assert not out.exists()
        assert flow.main(["--only", "start", "rho", *given]) == 0
        assert flow.main(["--only", "jpeg", *given]) == 0
        assert flow.main(["--only", "geneval", "--steps", "1", *given]) == 0
    found = json.loads(out.read_text())
    assert set(found) == set(flow.PARTS)
    assert found["start"]["SDE"]["soft"]["mean"] != found["start"]["ODE"]["soft"]["mean"]
    assert {cell["task"] for cell in found["rho"]["correlations"]} == {"all", "none"}
    for name in flow.JPEG:
        assert found["jpeg"][name]["kB"]["n"] == 3
        assert found["jpeg"][name]["steps"] == 1
    assert set(found["geneval"]) >= {"rewards", "permuted", "verdicts"}
    assert (tmp_path / "flow_jpeg_smaller.png").exists()


def change(before: float, difference: float, stderr: float = 0.05) -> Paired:
    return Paired(Summary(before, 0.1, 100), Summary(before + difference, 0.1, 100), difference, stderr, 100, 0)


def test_verdicts_on_sizes_by_hand() -> None:
    """-32 % and +68 % are seen; .24 of 2 is 12 %; .7 in .2 errors each is 3.5 errors."""
    seen = [change(2.2, -0.7), change(2.2, 1.5), change(2.2, -0.04)]
    assert list(flow.jpeg_verdicts(dict(zip(flow.JPEG, seen, strict=True))).values()) == [True, True, True]
    weak = [change(2.0, -0.24), change(2.0, 0.7, 0.2), change(2.0, -0.09)]
    assert list(flow.jpeg_verdicts(dict(zip(flow.JPEG, weak, strict=True))).values()) == [False, False, False]
    wrong = [change(2.0, 0.7), change(2.0, -0.7), change(2.0, 0.1)]
    assert list(flow.jpeg_verdicts(dict(zip(flow.JPEG, wrong, strict=True))).values()) == [False, False, True]


def test_early_previews_decide_the_verdict_on_rho() -> None:
    cells = [
        {"task": "all", "surrogate": "reward", "target": "reward", "step": step, "spearman": value}
        for step, value in ((1, 0.9), (2, 0.4), (4, 0.45), (5, 0.8))
    ]
    assert flow.rho_verdicts({"correlations": cells}, 10) == {"above .5 at 0.2 to 0.4 T": False}
    assert flow.rho_verdicts({"correlations": cells}, 5) == {"above .5 at 0.2 to 0.4 T": True}


def test_other_noise_changes_what_is_ahead_alone(pipeline: Path) -> None:
    policy = loading.load(pipeline, sampler=Sampler.of(4, 3.0, 0.7), max_text_length=6, guidance_scale=1.0)
    first, other = policy.start(["a cat"] * 2, [(1,), (2,)])
    (state,) = policy.denoise([first], 2)
    changed = with_noise_of(state, other)
    assert isinstance(changed, LatentSegment)
    assert torch.equal(changed.latent_SCHW, state.latent_SCHW)
    assert torch.equal(changed.noise_RCHW, other.noise_RCHW[2:])
    own, redrawn, same = policy.denoise([state, changed, with_noise_of(changed, first)], 4)
    # Some CPUs round a row by its place in the batch.
    torch.testing.assert_close(own.latent_SCHW, same.latent_SCHW, atol=1e-5, rtol=1e-5)
    assert np.abs((own.latent_SCHW - redrawn.latent_SCHW)[3:].numpy()).max() > 0.1
