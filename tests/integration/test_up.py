"""`python -m services up` as a user runs it: refusals, and no process left after Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.cluster.processes import users_of

ROOT = Path(__file__).parents[2]
TOML = """
[server]
port = {port}
[cluster]
num_cpus = 4
num_gpus = 1
object_store_bytes = 83886080
[scorers.der]
kind = "der"
model = "{model}"
serving = {{ replicas = {replicas}, num_gpus = 0.5 }}
"""
Up = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def up(service: Any, tiny_models: Any, tmp_path: Path, free_port: Callable[[], int]) -> Up:
    """Return a function that starts the command in its own process group, as a terminal does."""

    def start(replicas: int, port: int | None = None) -> subprocess.Popen[str]:
        config = tmp_path / "service.toml"
        config.write_text(TOML.format(port=port or free_port(), model=tiny_models.dinov2, replicas=replicas))
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "services", "up", str(config), "--run-dir", str(tmp_path / "run")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    return start


def test_demand_above_the_clusters_gpus_is_refused(up: Up) -> None:
    output, _ = (process := up(replicas=3)).communicate(timeout=120)
    assert process.returncode == 1
    assert "need 1.5 GPUs (each 0.5, 0.5, 0.5), but the cluster has 1" in output
    assert "Traceback" not in output


def test_a_busy_port_is_refused_at_once(up: Up, service: Any) -> None:
    port = service.settings.server.port
    output, _ = (process := up(replicas=1, port=port)).communicate(timeout=60)
    assert process.returncode == 1
    assert f"127.0.0.1:{port}" in output
    assert "--port" in output


def test_ctrl_c_while_models_load_leaves_no_process(up: Up, tmp_path: Path) -> None:
    process = up(replicas=2)
    assert process.stdout is not None
    assert "ready" in process.stdout.readline()  # the gateway is ready, the models are still loading
    temp_dir = Path(json.loads((tmp_path / "run" / "service.json").read_text())["temp_dir"])
    assert users_of(temp_dir)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "stopped" in output
    assert users_of(temp_dir) == []
    assert not temp_dir.exists()
    assert not (tmp_path / "run" / "service.json").exists()
