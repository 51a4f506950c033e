"""`synod train`: options, error messages, and the call from the `synod` command."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synod import cli
from trainer.__main__ import main
from trainer.checkpoint import CheckpointNotWritten
from trainer.errors import NonFinite
from trainer.settings import TrainerSettings

ROOT = Path(__file__).parents[3]


@pytest.fixture
def toml(settings_from: Callable[..., TrainerSettings], world_dir: Path) -> Path:
    settings_from()
    return world_dir / "train.toml"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TrainerSettings, bool]]:
    """Settings and evaluation flag of each call of `run`."""
    runs: list[tuple[TrainerSettings, bool]] = []

    def run(settings: TrainerSettings, *, evaluated: bool) -> int:
        runs.append((settings, evaluated))
        return 0

    monkeypatch.setattr("trainer.run.run", run)
    return runs


def test_options_override_environment_and_file(
    toml: Path, ran: list[tuple[TrainerSettings, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNOD__TRAINER__STEPS", "7")
    monkeypatch.setenv("SYNOD__TRAINER__PROMPTS_PER_STEP", "2")
    monkeypatch.chdir(toml.parent)
    assert main(["train.toml"]) == 0
    message = ["--steps", "3", "--run-dir", "a run", "--url", "http://service:1", "--no-evaluation"]
    assert main([str(toml), *message]) == 0
    (file, evaluated), (given, not_evaluated) = ran
    assert (file.steps, file.prompts_per_step, file.run_dir, evaluated) == (7, 2, toml.parent / "run", True)
    assert (given.steps, given.prompts_per_step, given.run_dir) == (3, 2, toml.parent / "a run")
    assert (given.rewards.url, not_evaluated) == ("http://service:1", False)


def test_a_wrong_option_is_named(
    toml: Path, ran: list[tuple[TrainerSettings, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(toml), "--steps", "0", "--url", "service:8000"]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"synod train: settings file {toml}")
    for part in ("trainer.steps", "greater than or equal to 1 (given: 0)", "trainer.rewards.url"):
        assert part in message
    assert ran == []


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (NonFinite("step 3: the image loss is nan", 0), 1, "synod train: step 3: the image loss is nan"),
        (CheckpointNotWritten(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_is_reported_in_one_line(
    toml: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    message: str,
) -> None:
    def run(*_: Any, **__: Any) -> int:
        raise error

    monkeypatch.setattr("trainer.run.run", run)
    assert main([str(toml)]) == status
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.json").write_text("{}")
    assert main(["report", str(tmp_path)]) == 0  # of a run that has just begun
    assert capsys.readouterr().out == f"wrote {tmp_path}/report.html\n"
    assert (tmp_path / "report.html").exists()
    assert main(["report", str(tmp_path / "no")]) == 1
    assert "is not a directory" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["report", "--help"])
    assert ended.value.code == 0


def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["a.toml", "--stpes", "3"], ["report"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert "usage: synod train" in capsys.readouterr().err


def test_synod_train_executes_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *what: became.append(what))
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):  # the real execve does not come back; here the parser goes on and knows no `train`
        cli.main(["train", "x.toml", "--steps", "3"])
    ((program, arguments, environ),) = became
    assert program == sys.executable
    assert arguments == [sys.executable, "-m", "trainer", "x.toml", "--steps", "3"]
    assert environ["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


@pytest.mark.slow
def test_help_from_the_synod_command_needs_no_torch() -> None:
    """The real command; -X importtime lists every imported module."""
    command = [sys.executable, "-X", "importtime", "-m", "synod.cli", "train", "--help"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: synod train [-h]")
    for part in ("--no-evaluation", "resumes a stopped run", "synod train report runs/train"):
        assert part in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "trainer.settings" in imported
    assert not {"torch", "transformers"} & imported
