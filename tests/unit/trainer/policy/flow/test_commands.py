"""`synod warm`, `synod verify` and a dry run, for a flow policy."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from synod import hub
from tests.unit.trainer.reward_services import Judge, serve
from tests.unit.trainer.test_models import write_pairs
from tests.unit.trainer.tiny_flow import Family
from tests.unit.trainer.tiny_run import write_data
from trainer.__main__ import main
from trainer.dry_run import dry_run
from trainer.settings import load

TEXT = """[trainer]
run_dir = "run"
reward_batch_size = 2
[trainer.policy]
family = "flow"
model = "./model"
max_text_length = 6
[trainer.data]
prompts = "prompts.jsonl"
[trainer.rewards]
scorers = { ber = 1.0 }
[trainer.screen]
threshold = "none"
group_size = 4
"""


@pytest.fixture
def config(pipelines: dict[Family, Path], tmp_path: Path) -> Path:
    write_data(tmp_path)
    shutil.copytree(pipelines["sd3"], tmp_path / "model")
    (tmp_path / "train.toml").write_text(TEXT)
    return tmp_path / "train.toml"


def test_warm_lists_every_part(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["warm", str(config)]) == 0
    _, *rows, last = capsys.readouterr().out.splitlines()
    folders = ["transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"]
    assert [row.split()[0] for row in rows] == [f"policy.model/{folder}" for folder in folders]
    assert [row.split()[5] for row in rows] == [hub.digest(str(config.parent / "model" / f))[:16] for f in folders]
    assert last == "the policy's weights, tokenizers and config.json fit each other"


def test_verify_ranks_prompts(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    statuses = {
        main(["verify", str(config), "--pairs", str(write_pairs(config.parent, image, *order))])
        for order in (("a red cat", "two dogs"), ("two dogs", "a red cat"))
    }
    assert statuses == {0, 1}
    assert "values in" in capsys.readouterr().out


def test_a_dry_run_counts_memory(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(Judge()) as url:
        assert dry_run(load(config, {"SYNOD__TRAINER__REWARDS__URL": url})) == 0
    said = capsys.readouterr().out
    assert "4 of 4 rollouts" in said
    assert "arithmetic of an update: " in said
    assert not (config.parent / "run").exists()
