"""A run in two workers of Ray Train equals the run in one process, also when a worker is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from tests.unit.trainer.conftest import settings_from, tiny_settings, world_dir  # noqa: F401
from tests.unit.trainer.loops import MakeSettings, lines
from tests.unit.trainer.reward_services import Judge, serve
from tests.unit.trainer.test_run import ready  # noqa: F401
from tests.unit.trainer.tiny_show_o import make_policy, tokenizer_of, vocab, vq  # noqa: F401
from tests.unit.trainer.world_two import LIMITS, ROUNDED, last_tensors, sgd
from trainer import run as run_module
from trainer.settings import TrainerSettings

ROOT = Path(__file__).parents[2]


def start(settings: TrainerSettings, toml: Path) -> subprocess.Popen[str]:
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SYNOD__TRAINER__PROMPTS_PER_STEP": "2",
        "SYNOD__TRAINER__REWARDS__SURROGATE": settings.rewards.surrogate,
        "SYNOD__TRAINER__RANKS__WORKERS": "2",
        "SYNOD__TRAINER__RANKS__GPUS": "0",
        "SYNOD__TRAINER__CHECKPOINT_EVERY": "1",
    }
    options = ["--steps", str(settings.steps), "--run-dir", str(settings.run_dir), "--url", settings.rewards.url]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests/integration/ray_sgd.py"), str(toml), *options, "--no-evaluation"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def workers_of(pid: int) -> list[int]:
    """Return the workers of Ray Train that descend from a process; other tests may run workers at the same time."""
    listed = subprocess.check_output(["ps", "-eo", "pid=,ppid=,args="], text=True)
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    parents = {int(child): int(parent) for child, parent, *_ in rows}

    def descends(one: int) -> bool:
        return one == pid or (one in parents and descends(parents[one]))

    named = (int(child) for child, _, *command in rows if re.match("ray::.*RayTrainWorker", "".join(command)))
    return [one for one in named if descends(one)]


def test_a_killed_worker_is_replaced(
    ready: MakeSettings,  # noqa: F811
    world_dir: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker is killed while the second step waits for its rewards; the first step is not repeated.

    After the third step the weights are those of a run in one process, and the records too.
    """
    killed, started = threading.Event(), list[subprocess.Popen[str]]()

    def rewarding(number: int) -> None:
        if number == 5 and not killed.is_set():  # two groups of two requests: the second step
            killed.set()
            os.kill(workers_of(started[0].pid)[0], signal.SIGKILL)
            time.sleep(1)

    options = {"PROMPTS_PER_STEP": "2", "STEPS": "3", "CHECKPOINT_EVERY": "1"}
    options |= {"SCREEN__AUDIT": "0.1"}  # the default, as the workers read it
    with serve(Judge()) as url, patch("trainer.state.make_optimizer", sgd):
        one = ready(REWARDS__URL=url, RUN_DIR='"one"', **options)
        assert run_module.run(one, evaluated=False) == 0
    with serve(Judge(), rewarding) as url:
        two = ready(REWARDS__URL=url, RUN_DIR='"two"', **options)
        started.append(start(two, world_dir / "train.toml"))
        said, _ = started[0].communicate(timeout=200)
    assert started[0].returncode == 0, said
    assert killed.is_set()
    assert "resuming from" in said
    assert "1 of 3 steps are done" in said
    assert lines(two.run_dir, *ROUNDED) == lines(one.run_dir, *ROUNDED)
    final = last_tensors(two.run_dir)
    for key, tensor in last_tensors(one.run_dir).items():
        torch.testing.assert_close(final[key], tensor, rtol=0, atol=LIMITS["weight_difference"])
    assert (two.run_dir / "policy/config.json").exists()

    monkeypatch.setenv("SYNOD__TRAINER__POLICY__SAMPLER__GUIDANCE_SCALE", "9")
    refused = start(two, world_dir / "train.toml")  # the workers find it, and are not started again
    said, _ = refused.communicate(timeout=200)
    assert refused.returncode == 1, said
    assert said.count("guidance_scale: 2.0 there, 9.0 now") == 1, said
