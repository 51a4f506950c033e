"""The plane's Prometheus metrics, summed over all its processes: gateways and scorer replicas.

Each process keeps its values in memory-mapped files of its own (prometheus_client's multiprocess mode), so a counter
survives the process that counted: after `kill -9` or a restart the sums never go back. Gauges count only processes that
live. The files lie in the folder METRICS_DIR_ENV names, which `up` empties and which a process must know before it
imports this module; without it the metrics are this process's alone.

Limits: one node and one process-id namespace (a scrape of a cluster sums its own node); one small file a process and
kind, kept until the plane starts anew; a dead process's gauge is forgotten unless its id was reused meanwhile.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

METRICS_DIR_ENV = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = CONTENT_TYPE_LATEST
REGISTRY = CollectorRegistry()

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

REQUESTS = Counter(
    "synod_requests", "Requests by outcome: 'ok' or an error's code", ["route", "outcome"], registry=REGISTRY
)
REQUEST_SECONDS = Histogram(
    "synod_request_seconds", "Time to answer a request", ["route"], buckets=_SECONDS, registry=REGISTRY
)
OPEN_REQUESTS = Gauge("synod_open_requests", "Requests being answered", multiprocess_mode="livesum", registry=REGISTRY)
ITEMS = Counter("synod_items", "Items admitted", registry=REGISTRY)
SCORES = Counter("synod_scores", "Scores delivered", ["scorer"], registry=REGISTRY)
FAILURES = Counter("synod_score_failures", "Scores that failed, by code", ["scorer", "code"], registry=REGISTRY)
RETRIES = Counter("synod_retries", "Calls of a scorer repeated after a lost replica", ["scorer"], registry=REGISTRY)
SCORER_SECONDS = Histogram(
    "synod_scorer_seconds",
    "Time the gateway waited for a scorer, retries included",
    ["scorer"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
BATCH_ITEMS = Histogram(
    "synod_batch_items", "Items in a batch on the device", ["scorer"], buckets=_IMAGES, registry=REGISTRY
)
BATCH_SECONDS = Histogram(
    "synod_batch_seconds", "Time a batch took on the device", ["scorer"], buckets=_SECONDS, registry=REGISTRY
)
HELD_IMAGES = Gauge(
    "synod_held_images",
    "Images waiting or running in replicas",
    ["scorer"],
    multiprocess_mode="livesum",
    registry=REGISTRY,
)


def render() -> bytes:
    """The text exposition of all processes together."""
    folder = os.environ.get(METRICS_DIR_ENV)
    if folder is None:
        return generate_latest(REGISTRY)
    forget_dead(Path(folder))
    everything = CollectorRegistry()
    MultiProcessCollector(everything, folder)  # type: ignore[no-untyped-call]
    return generate_latest(everything)


def forget_dead(folder: Path) -> None:
    """Drop the gauges of processes that ended; their counters stay."""
    pids = {int(found[1]) for path in folder.glob("gauge_live*.db") if (found := re.search(r"_(\d+)\.db$", path.name))}
    for pid in pids:
        if not Path(f"/proc/{pid}").exists():
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
