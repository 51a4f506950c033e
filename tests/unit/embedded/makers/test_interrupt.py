"""Ctrl-C during `make weights` ends every process and starts none."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embedded.makers.__main__ import WORKERS
from services.cluster.processes import users_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]


def test_ctrl_c_stops_training_and_the_queue(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    command = [sys.executable, "-m", "embedded.makers", "--quick", "--weights", str(weights), "--build", str(tmp_path)]
    parent = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    ends_s = time.monotonic() + 120
    while len(users_of(weights)) < 2:  # the parent, and a model's process
        assert parent.poll() is None, parent.communicate()
        assert time.monotonic() < ends_s
        time.sleep(0.05)
    parent.send_signal(signal.SIGINT)  # to the parent alone, which must end the others
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert "run the same command again" in said
    while users_of(weights):
        assert time.monotonic() < ends_s
        time.sleep(0.05)
    assert len(list(weights.glob("*"))) <= WORKERS, "a waiting model was started"
    assert len(list(weights.glob("*/training.json"))) < WORKERS, "training went on to its end"
