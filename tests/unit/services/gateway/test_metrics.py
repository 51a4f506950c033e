"""Counters outlive the processes that count; gauges do not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
WORK = """
import os, signal, sys
from services.gateway import metrics
metrics.ITEMS.inc({items})
metrics.BATCH_ITEMS.labels("a").observe(3)
metrics.HELD_IMAGES.labels("a").set({held})
print("counted", flush=True)
sys.stdin.readline()
"""
SCRAPE = "from services.gateway import metrics; print(metrics.render().decode())"


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
    """Start a process that counts n items, holds 10 n images, and then waits."""
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


def test_sums_survive_a_kill_and_gauges_follow_the_living(
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
