"""The metrics of a node without a gateway, scraped as Prometheus scrapes them."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cluster.local import free_port

pytestmark = pytest.mark.slow

COUNT = """
from services.observability import metrics
metrics.BATCH_ITEMS.labels("ber").observe(7)
metrics.HELD_IMAGES.labels("ber").set(3)
print("counted", flush=True)
input()
"""


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cluster.exporter", "--host", "127.0.0.1", "--port", str(port)],
        env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[4])},
    )
    try:
        for _ in range(300):
            try:
                get(f"http://127.0.0.1:{port}/healthz")
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def test_the_exporter_drops_the_gauges_of_ended_replicas(url: str, tmp_path: Path) -> None:
    replica = subprocess.Popen(
        [sys.executable, "-c", COUNT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[4])},
    )
    assert replica.stdout is not None
    assert replica.stdin is not None
    assert replica.stdout.readline() == b"counted\n"
    alive = get(f"{url}/metrics")
    assert 'synod_batch_items_sum{scorer="ber"} 7.0' in alive
    assert 'synod_held_images{scorer="ber"} 3.0' in alive
    replica.communicate(b"\n", timeout=30)
    dead = get(f"{url}/metrics")
    assert 'synod_batch_items_sum{scorer="ber"} 7.0' in dead
    assert "synod_held_images{" not in dead


def test_another_path_is_not_found(url: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"{url}/")
