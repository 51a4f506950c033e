"""Define the service's Prometheus metrics, summed over all its processes: gateways and scorer replicas.

Each process writes its values to its own memory-mapped files (prometheus_client's multiprocess mode), so that a counter
survives its process: the sums never decrease, not even after `kill -9` or a restart. Gauges count live processes only.
The files are in the directory that METRICS_DIR_ENV names; `up` empties it, and the variable must be set before this
module is imported. Without it, the metrics are those of this process.

Limits: one node and one process-id namespace (a scrape of a cluster sums its own node); one small file per process and
kind, kept until the service restarts; a dead process's gauge is dropped unless its process id has been reused.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from services.observability.reward_health import Health, Sums, healths, sums_of
from synod.contracts import Outcome

METRICS_DIR_ENV = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = CONTENT_TYPE_LATEST
REGISTRY = CollectorRegistry()
if _folder := os.environ.get(METRICS_DIR_ENV):  # on a cluster node, the first process creates it
    Path(_folder).mkdir(parents=True, exist_ok=True)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SHARES = (0.0625, 0.125, 0.25, 0.5, 0.75, 1)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

REQUESTS = Counter(
    "synod_requests",
    "Requests by outcome: 'ok', an error's code or 'client_gone'",
    ["route", "outcome"],
    registry=REGISTRY,
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


IMAGES = Counter("synod_images", "Images received, references included", registry=REGISTRY)
STAGE_SECONDS = Histogram(
    "synod_stage_seconds",
    "Latency by stage: decode (images of a request), queue (a call's wait for its turn), device (a batch), total",
    ["stage"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
BATCH_FILL = Histogram(
    "synod_batch_fill", "Images in a batch, as a share of its maximum", ["scorer"], buckets=_SHARES, registry=REGISTRY
)
QUEUE_OLDEST = Gauge(
    "synod_queue_oldest_timestamp_seconds",
    "Unix time at which the next call of a gateway's queue arrived; +Inf for an empty queue",
    ["scorer"],
    multiprocess_mode="livemin",
    registry=REGISTRY,
)
REJECTS = Counter("synod_rejects", "Work refused or dropped before it reached a device", ["reason"], registry=REGISTRY)
CACHE = Counter(
    "synod_cache", "Scores requested: 'hit', 'shared' with work in flight, or 'miss'", ["result"], registry=REGISTRY
)
STORE_FAILURES = Counter(
    "synod_store_failures", "Failed calls of the gateways' shared store", ["call"], registry=REGISTRY
)
REWARD_SUMS = Counter(
    "synod_reward_sums",
    "Sums from which reward health is computed (services/observability/reward_health.py)",
    ["scorer", "of"],
    registry=REGISTRY,
)
_HEALTH_HELP = {
    "mean": "Mean of the scores",
    "std": "Standard deviation of the scores",
    "saturation": "Share of scores within 1 % of either end of the range",
    "zero_spread": "Share of groups (equal prompt in one request) whose scores are all equal",
    "error_share": "Share of outcomes that failed",
    "drift": "Mean since the baseline minus the mean of the baseline, in standard deviations of the baseline",
}
_seen: dict[str, float] = {}


def count_rewards(
    scorer: str, outcomes: Sequence[Outcome], groups: Sequence[Sequence[int]], low: float, high: float
) -> None:
    """Add one request's outcomes of a scorer. `groups` are indexes into them; `low`, `high` are the scorer's range."""
    sums = sums_of(outcomes, groups, low, high, _seen.get(scorer, 0.0))
    _seen[scorer] = _seen.get(scorer, 0.0) + sums.scores
    for of, value in dataclasses.asdict(sums).items():
        REWARD_SUMS.labels(scorer, of).inc(value)


def render(ranges: Mapping[str, tuple[float, float]] | None = None) -> bytes:
    """Return the text exposition of all processes, with the reward health of the scorers in `ranges`: (low, high)."""
    folder = os.environ.get(METRICS_DIR_ENV)
    everything = REGISTRY
    if folder is not None:
        forget_dead(Path(folder))
        everything = CollectorRegistry()
        MultiProcessCollector(everything, folder)  # type: ignore[no-untyped-call]
    derived = CollectorRegistry()
    derived.register(_HealthCollector(healths(_reward_sums(everything), ranges or {})))
    return generate_latest(everything) + generate_latest(derived)


class _HealthCollector(Collector):
    def __init__(self, found: Mapping[str, Health]) -> None:
        self._found = found

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for field, text in _HEALTH_HELP.items():
            family = GaugeMetricFamily(f"synod_reward_{field}", text, labels=["scorer"])
            for scorer, health in self._found.items():
                if (value := getattr(health, field)) is not None:
                    family.add_metric([scorer], value)
            yield family


def _reward_sums(registry: CollectorRegistry) -> dict[str, Sums]:
    found: dict[str, dict[str, float]] = {}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name == "synod_reward_sums_total":
                found.setdefault(sample.labels["scorer"], {})[sample.labels["of"]] = sample.value
    return {scorer: Sums(**sums) for scorer, sums in found.items()}


def report_queue(scorer: str, arrived_s: float | None) -> None:
    """Set when (monotonic) the next call of this gateway's queue arrived; None for an empty queue."""
    unix_s = math.inf if arrived_s is None else time.time() - (time.monotonic() - arrived_s)
    QUEUE_OLDEST.labels(scorer).set(unix_s)


def forget_dead(folder: Path) -> None:
    """Drop the gauges of processes that have ended; keep their counters."""
    pids = {int(found[1]) for path in folder.glob("gauge_live*.db") if (found := re.search(r"_(\d+)\.db$", path.name))}
    for pid in pids:
        if not Path(f"/proc/{pid}").exists():
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
