"""The command lines of the training benchmarks, with a tiny policy and an HTTP service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import dgs, learning, screening_table
from tests.unit.benchmarks.trained_rewards import config, stepped  # noqa: F401
from tests.unit.trainer.conftest import settings_from, tiny_settings, world_dir  # noqa: F401
from tests.unit.trainer.loops import MakePolicy
from tests.unit.trainer.reward_services import Judge, serve
from tests.unit.trainer.tiny_show_o import make_policy, tokenizer_of, vocab, vq  # noqa: F401


@pytest.fixture
def given(
    tmp_path: Path,
    config: Path,  # noqa: F811
    make_policy: MakePolicy,  # noqa: F811
) -> Iterator[list[str]]:
    """The options that all have: the settings, a service, and where runs and results go."""
    make_policy().save(config.parent / "model")
    with serve(Judge()) as url:
        folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "found.json")]
        yield ["--config", str(config), "--url", url, *folders]


def test_the_queue_runs_from_the_command_line(
    tmp_path: Path, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--minutes", "1", "--marks", "1", "--seeds", "1", "--arms", "plain_9", "--prompts", "4"]
    assert dgs.main([*small, *given, "--hours", "0"]) == 1
    assert "stopped before the end; the same command continues" in capsys.readouterr().out
    assert dgs.main([*small, *given]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["arms"]["plain_9"]["steps"] == 1
    assert dgs.main([*small, *given, "--summary"]) == 0
    assert "| plain_9 | 1 | 1 |" in capsys.readouterr().out


def test_learning_runs_from_the_command_line(tmp_path: Path, given: list[str]) -> None:
    assert learning.main(["--arm", "plain_9", "--steps", "1", "--prompts", "4", "--shown", "2", *given]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["rewards"]["steps"], found["permuted"]["steps"], found["arm"]) == (1, 1, "plain_9")
    assert (tmp_path / "found.png").exists()


def test_the_table_runs_from_the_command_line(
    tmp_path: Path, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--prompts", "3", "--rollouts", "3", "--completions", "2", "--steps", "2"]
    assert screening_table.main([*small, *given, "--minutes", "0"]) == 1
    assert screening_table.main([*small, *given]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["prompts"] == {"all": 3, "visual": 1, "textual": 1, "none": 1}
    assert (tmp_path / "found.md").read_text() in capsys.readouterr().out
