"""A run in two workers of Ray Train equals the run in one process, also when a worker is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.unit.trainer.conftest import settings_from, tiny_settings, world_dir  # noqa: F401
from tests.unit.trainer.loops import MakeSettings, lines
from tests.unit.trainer.reward_services import Judge, serve
from tests.unit.trainer.test_run import ready  # noqa: F401
from tests.unit.trainer.tiny_show_o import make_policy, tokenizer_of, vocab, vq  # noqa: F401
from trainer import run as run_module
from trainer.settings import TrainerSettings

ROOT = Path(__file__).parents[2]
ROUNDED = (
    *("loss_text", "loss_image", "grad_norm", "kl_text", "kl_image", "ratio_max_text", "ratio_max_image"),
    *("gradient_cosine_text", "gradient_cosine_image"),
)


def start(settings: TrainerSettings, toml: Path) -> subprocess.Popen[str]:
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SYNOD__TRAINER__PROMPTS_PER_STEP": "2",
        "SYNOD__TRAINER__RANKS__WORKERS": "2",
        "SYNOD__TRAINER__RANKS__GPUS": "0",
        "SYNOD__TRAINER__CHECKPOINT_EVERY": "1",
    }
    options = ["--steps", str(settings.steps), "--run-dir", str(settings.run_dir), "--url", settings.rewards.url]
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", str(toml), *options, "--no-evaluation"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_killed_worker_is_replaced(ready: MakeSettings, world_dir: Path) -> None:  # noqa: F811
    """The worker is killed while the second step waits for its rewards; the first step is not repeated."""
    killed = threading.Event()

    def rewarding(number: int) -> None:
        if number == 5 and not killed.is_set():  # two groups of two requests: the second step
            killed.set()
            victims = subprocess.run(
                ["pgrep", "-f", "ray::.*RayTrainWorker"], capture_output=True, text=True, check=False
            ).stdout.split()
            os.kill(int(victims[0]), signal.SIGKILL)
            time.sleep(1)

    with serve(Judge()) as url:
        one = ready(REWARDS__URL=url, PROMPTS_PER_STEP="2", RUN_DIR='"one"', STEPS="2", CHECKPOINT_EVERY="1")
        assert run_module.run(one, evaluated=False) == 0
    with serve(Judge(), rewarding) as url:
        two = ready(REWARDS__URL=url, PROMPTS_PER_STEP="2", RUN_DIR='"two"', STEPS="2", CHECKPOINT_EVERY="1")
        process = start(two, world_dir / "train.toml")
        said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert killed.is_set()
    assert lines(two.run_dir, *ROUNDED)[0] == lines(one.run_dir, *ROUNDED)[0]
    assert [line["step"] for line in lines(two.run_dir)] == [0, 1]
    first = [load_file(s.run_dir / "checkpoints/step-000001/tensors.safetensors") for s in (one, two)]
    for key, tensor in first[0].items():
        if "exp_avg" in key and "sq" not in key:  # moments are linear in gradients, AdamW's weights are not
            torch.testing.assert_close(first[1][key], tensor, rtol=1e-5, atol=1e-7)
    assert (two.run_dir / "policy/config.json").exists()
