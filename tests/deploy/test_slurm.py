"""deploy/slurm/train.sbatch with Slurm's own commands replaced: what it starts, and how it stops."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from trainer.stop import STOP_FILE

SCRIPT = Path(__file__).parents[2] / "deploy/slurm/train.sbatch"
JOB = {
    "SLURM_JOB_NAME": "colours",
    "SLURM_JOB_ID": "4711234",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GPUS_ON_NODE": "8",
    "SLURM_CPUS_PER_TASK": "32",
}
SCONTROL = 'test "$*" = "show hostnames gpu[07-08]" && printf "gpu07\\ngpu08\\n"'
RECORD = 'printf "%s\\0" "$@" > srun.arguments'
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Return a function that starts the script in `tmp_path` with a program as srun."""

    def start(
        srun: str, *leave_out: str, arguments: tuple[str, ...] = ("my.toml", "--steps", "7"), run_dir: str | None = None
    ) -> subprocess.Popen[bytes]:
        (tmp_path / ".venv/bin").mkdir(parents=True)
        for name, text in (("scontrol", SCONTROL), ("srun", srun), (".venv/bin/torchrun", "exit 9")):
            (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
            (tmp_path / name).chmod(0o755)
        if ".venv" in leave_out:
            (tmp_path / ".venv/bin/torchrun").unlink()
        kept = {name: value for name, value in JOB.items() if name not in leave_out}
        kept |= {} if run_dir is None else {"RUN_DIR": run_dir}
        with (tmp_path / "stderr").open("w") as stderr:
            return subprocess.Popen(
                ["bash", str(SCRIPT), *arguments],
                cwd=tmp_path,
                env={**kept, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
                stderr=stderr,
            )

    return start


def test_the_script_is_short_and_valid() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 30
    done = subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_one_torchrun_per_node_starts_the_trainer(start: Start, tmp_path: Path) -> None:
    assert start(RECORD).wait(20) == 0
    words = (tmp_path / "srun.arguments").read_text().split("\0")[:-1]
    where = words.index(".venv/bin/torchrun")
    assert words[:where] == ["--kill-on-bad-exit=1", "--cpus-per-task=32"]
    options: Namespace = get_args_parser().parse_args(words[where + 1 :])
    assert (options.nnodes, options.nproc_per_node) == ("2", "8")
    assert (options.rdzv_backend, options.rdzv_endpoint, options.rdzv_id) == ("c10d", "gpu07:21234", "4711234")
    assert (options.module, options.training_script) == (True, "trainer")
    assert options.training_script_args == ["my.toml", "--steps", "7", "--run-dir", "runs/colours"]


def test_slurms_directives_fit_the_script() -> None:
    given = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", SCRIPT.read_text(), re.MULTILINE))
    assert given["ntasks-per-node"] == "1"  # torchrun starts a node's processes
    signal_name, _, seconds = given["signal"].partition("@")
    assert signal_name == "B:TERM"  # the script alone: torchrun ends on a signal
    (timeout,) = re.findall(r"--shutdown-timeout (\d+)", SCRIPT.read_text())
    assert int(timeout) < int(seconds)


def test_sigterm_leaves_the_stop_file_and_waits(start: Start, tmp_path: Path) -> None:
    """The trainer finishes its step and the script returns the trainer's own status."""
    file = tmp_path / "runs/colours" / STOP_FILE
    script = start(f"touch started; until test -e {file}; do sleep 0.05; done; sleep 0.3; touch finished; exit 3")
    wait_for(tmp_path / "started")
    assert not file.exists()
    script.send_signal(signal.SIGTERM)
    assert script.wait(20) == 3
    assert (tmp_path / "finished").exists()


def test_a_failed_run_fails_the_job(start: Start) -> None:
    assert start("exit 5").wait(20) == 5


def test_a_job_without_gpus_is_refused(start: Start, tmp_path: Path) -> None:
    assert start(RECORD, "SLURM_GPUS_ON_NODE").wait(20) != 0
    assert "ask for GPUs" in (tmp_path / "stderr").read_text()
    assert not (tmp_path / "srun.arguments").exists()


def test_a_directory_of_the_users_choice_has_the_stop_file(start: Start, tmp_path: Path) -> None:
    assert start(RECORD, run_dir="/".join((str(tmp_path), "my runs/a"))).wait(20) == 0
    words = (tmp_path / "srun.arguments").read_text().split("\0")[:-1]
    assert words[-2:] == ["--run-dir", f"{tmp_path}/my runs/a"]
    assert (tmp_path / "my runs/a").is_dir()


@pytest.mark.parametrize(
    ("arguments", "leave_out", "message"),
    [
        ((), "", "give the settings first"),
        (("--steps", "7"), "", "give the settings first"),
        (("my.toml", "--run-dir", "a"), "", "by RUN_DIR=DIR"),
        (("my.toml", "--run-dir=a"), "", "by RUN_DIR=DIR"),
        (("my.toml",), ".venv", "has no .venv/bin/torchrun"),
    ],
)
def test_what_would_be_ignored_or_fail_is_refused(
    start: Start, tmp_path: Path, arguments: tuple[str, ...], leave_out: str, message: str
) -> None:
    assert start(RECORD, leave_out, arguments=arguments).wait(20) == 2
    assert message in (tmp_path / "stderr").read_text()
    assert not (tmp_path / "srun.arguments").exists()


def wait_for(path: Path) -> None:
    ends_s = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < ends_s
        time.sleep(0.02)
