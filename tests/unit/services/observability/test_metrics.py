"""Counters outlive the processes that count; gauges do not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]
WORK = """
import os, signal, sys
from services.observability import metrics
from synod.contracts import Score, ScoreFailure
metrics.ITEMS.inc({items})
metrics.BATCH_ITEMS.labels("a").observe(3)
metrics.HELD_IMAGES.labels("a").set({held})
metrics.QUEUE_OLDEST.labels("a").set(float("inf") if {items} == 1 else 1000.0 + {items})
metrics.count_rewards("a", [Score(-0.5), Score(0.5 * {items} - 1), ScoreFailure("x", "")], [[0, 1]], -1.0, 1.0)
print("counted", flush=True)
sys.stdin.readline()
"""
SCRAPE = "from services.observability import metrics; print(metrics.render({'a': (-1.0, 1.0)}).decode())"


def start(folder: Path, code: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def scrape(folder: Path) -> dict[str, float]:
    lines = start(folder, SCRAPE).communicate()[0].strip().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Start a process that counts n items, holds 10 n images and waits."""
    started = []

    def work(n: int) -> subprocess.Popen[str]:
        process = start(tmp_path, WORK.format(items=n, held=10 * n))
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "counted\n"
        return process

    yield work
    for process in started:
        process.kill()
        process.communicate()


def test_counters_survive_a_kill_and_gauges_do_not(
    tmp_path: Path, worker: Callable[[int], subprocess.Popen[str]]
) -> None:
    killed, ended = worker(1), worker(2)
    samples = [scrape(tmp_path)]
    killed.kill()
    killed.communicate()
    samples.append(scrape(tmp_path))
    third = worker(4)
    samples.append(scrape(tmp_path))
    for process in (ended, third):
        process.communicate("end\n")
    samples.append(scrape(tmp_path))
    assert [s["synod_items_total"] for s in samples] == [3, 3, 7, 7]
    assert [s['synod_batch_items_sum{scorer="a"}'] for s in samples] == [6, 6, 9, 9]
    assert [s.get('synod_held_images{scorer="a"}') for s in samples] == [30, 20, 60, None]


def test_reward_health_and_queue_age_cover_all_processes(
    tmp_path: Path, worker: Callable[[int], subprocess.Popen[str]]
) -> None:
    """Scores -0.5, -0.5 in one process, -0.5, 1.0 in the other; the first has no queue."""
    first, second = worker(1), worker(4)
    samples = scrape(tmp_path)
    scores = np.array([-0.5, -0.5, -0.5, 1.0])
    expected = {
        "mean": scores.mean(),
        "std": scores.std(),
        "saturation": 1 / 4,
        "zero_spread": 1 / 2,
        "error_share": 2 / 6,
    }
    for name, value in expected.items():
        assert samples[f'synod_reward_{name}{{scorer="a"}}'] == pytest.approx(value), name
    assert 'synod_reward_drift{scorer="a"}' not in samples  # all scores are in the baseline
    assert samples['synod_queue_oldest_timestamp_seconds{scorer="a"}'] == 1004
    for process in (second, first):
        process.kill()
        process.communicate()
        samples = scrape(tmp_path)
        assert samples['synod_reward_mean{scorer="a"}'] == pytest.approx(scores.mean())
