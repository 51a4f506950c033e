"""Scorers in other Python environments: as a replica, as a child process, and in the service's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.cluster import local
from synod.client import SynodClient
from synod.contracts import Score, ScoreFailure, ScoreItem, ScoreRequest
from tests import venvs

NEWER, OLDER = "2.3.5", "1.26.4"  # NumPy versions; a replica cannot run in the older one, so it takes a child process
SERVICE = """
golden = "./golden.json"
[server]
port = {port}
[cluster]
num_cpus = 4
object_store_bytes = 83886080
[store]
max_scores = 0  # compute every score
"""
SCORER = """
[scorers.{name}]
kind = "custom"
load = "own_scorer:load"
needs = ["image", "prompt"]
options = {{ folder = "{folder}" }}
serving = {{ {serving} }}
"""


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": venvs.PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def pixels(grey: int) -> Any:
    return np.full((8, 8, 3), grey, np.uint8)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, SynodClient]]:
    folder = tmp_path_factory.mktemp("service")
    newer, older = (venvs.make(folder / f"numpy-{at}", f"numpy=={at}") for at in (NEWER, OLDER))
    servings = {"newer": f'python = "{newer}"', "older": f'python = "{older}"', "ours": ""}
    port = local.free_port()
    scorers = [SCORER.format(name=name, folder=folder, serving=serving) for name, serving in servings.items()]
    (folder / "service.toml").write_text(SERVICE.format(port=port) + "".join(scorers))
    item = {"image": {"shape": [1, 1, 3], "data": "MzMz"}, "prompt": "fine"}  # three bytes of 51
    (folder / "golden.json").write_text(json.dumps([{"item": item, "scores": dict.fromkeys(servings, 0.2)}]))
    try:
        started = command(folder, "up", "service.toml", "--run-dir", "run", "--detach")
        assert started.returncode == 0, started.stdout + started.stderr
        with SynodClient(f"http://127.0.0.1:{port}") as client:
            yield folder, client
    finally:
        command(folder, "down", "--run-dir", "run")


def scores(client: SynodClient, scorer: str, *prompts: str) -> list[Any]:
    items = tuple(ScoreItem(image=pixels(51 * i), prompt=prompt) for i, prompt in enumerate(prompts))
    return [one.scores[scorer] for one in client.score(ScoreRequest(items, (scorer,))).results]


def test_each_scorer_uses_its_environments_packages(service: Any) -> None:
    _, client = service
    found = {name: scores(client, name, "fine", "fine") for name in ("newer", "older", "ours")}
    for outcomes in found.values():
        assert [one.value for one in outcomes] == pytest.approx([0.0, 0.2])
    versions = {name: outcomes[0].detail["numpy"] for name, outcomes in found.items()}
    assert versions == {"newer": NEWER, "older": OLDER, "ours": metadata.version("numpy")}
    assert len({outcomes[0].origin for outcomes in found.values()}) == 3


def test_a_bad_item_fails_alone_in_every_environment(service: Any) -> None:
    _, client = service
    for name in ("newer", "older"):
        first, bad, last = scores(client, name, "fine", "raises it", "fine")
        assert isinstance(bad, ScoreFailure)
        assert "ValueError: cannot read this: it" in bad.message
        assert [first.value, last.value] == pytest.approx([0.0, 0.4])


@pytest.mark.parametrize(
    ("prompt", "message"), [("exits 5", "ended with status 5"), ("garbage text", "it broke the protocol")]
)
def test_a_child_process_that_fails_is_replaced(service: Any, prompt: str, message: str) -> None:
    _, client = service
    (before,) = scores(client, "older", "fine")
    first, bad, last = scores(client, "older", "fine", prompt, "fine")
    assert isinstance(bad, ScoreFailure)
    assert message in bad.message
    assert [first.value, last.value] == pytest.approx([0.0, 0.4])
    (after,) = scores(client, "older", "fine")
    assert isinstance(after, Score)
    assert {first.detail["pid"], after.detail["pid"]}.isdisjoint({before.detail["pid"]})


def test_a_killed_child_process_loses_no_score(service: Any) -> None:
    _, client = service
    (before,) = scores(client, "older", "fine")
    os.kill(before.detail["pid"], signal.SIGKILL)
    assert [one.value for one in scores(client, "older", "fine", "fine")] == pytest.approx([0.0, 0.2])


def test_down_ends_the_child_process_and_keeps_its_output(service: Any, eventually: Callable[..., None]) -> None:
    """This test runs last of those that score: it stops the service."""
    folder, client = service
    (printed,) = scores(client, "older", "prints hello")
    pid = printed.detail["pid"]
    assert command(folder, "down", "--run-dir", "run").stdout.strip() == "stopped"
    eventually(lambda: not Path(f"/proc/{pid}").exists(), 20.0)
    logs = "\n".join(path.read_text() for path in (folder / "run" / "logs").glob("replica_synod_older_*"))
    assert "older: stdout hello" in logs
    assert "older: stderr hello" in logs


def test_check_reports_how_each_scorer_runs(service: Any) -> None:
    folder, _ = service
    checked = command(folder, "check", "service.toml")
    assert checked.returncode == 0, checked.stderr
    assert f"numpy-{NEWER}/bin/python: the replica runs in it" in checked.stdout
    assert f"numpy-{OLDER}/bin/python: in a child process: it has numpy {OLDER}" in checked.stdout
