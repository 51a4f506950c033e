"""A long mixed load on a service whose store fills early: memory must stay bounded."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from benchmarks.faults.cases import CUT
from benchmarks.faults.load import PER_REQUEST, Counting, Tally, either, fresh, score
from benchmarks.faults.scorers import image_of
from benchmarks.faults.service import Running
from synod.client import SynodClient
from synod.contracts import ImageInput
from synod.images import encode_png

CLIENTS: Final = 4
PAUSE_S: Final = 0.05  # between a client's requests
SAMPLES: Final = 240
GROWTH_MIB, GROWTH_SHARE = 48.0, 0.1  # allowed growth from the second third of a soak to the last
CHECKED_FROM_S: Final = 300.0  # a shorter soak only shows the warm-up
DEPLOYMENTS: Final = ("Gateway", "colour", "nan")
Sample = tuple[float, dict[str, float]]


def soak(service: Running, seconds: float) -> dict[str, Any]:
    """Score images of every kind for `seconds` and report memory by deployment.

    The images are raw, encoded, corrupt or named by digest, and some scores are NaN.
    """
    ends_s, tally, seen = time.monotonic() + seconds, Tally(), Counter[str]()
    threads = [threading.Thread(target=_client, args=(service, i, ends_s, tally, seen)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    samples = _watch(service, ends_s, seconds / SAMPLES)
    for thread in threads:
        thread.join()
    figures = {name: memory_figures([(at_s, rss[name]) for at_s, rss in samples]) for name in DEPLOYMENTS}
    held = {"no score is doubled, disordered or invented": not (tally.doubled + tally.disordered + tally.invented)}
    held["failures are the planned ones"] = set(tally.failed) <= {"bad_image", "non_finite"}
    if seconds >= CHECKED_FROM_S:
        held |= {f"memory of {name} is bounded": bounded(one) for name, one in figures.items()}
    return tally.counts() | {"seconds": seconds, "attempts": dict(seen), "rss_mib": figures, "held": held}


def bounded(figures: dict[str, float]) -> bool:
    """Return whether memory grew no more than allowed from the second third to the last."""
    return figures["last_third"] <= figures["second_third"] * (1 + GROWTH_SHARE) + GROWTH_MIB


def _client(service: Running, lane: int, ends_s: float, tally: Tally, seen: Counter[str]) -> None:
    def corrupt(number: int) -> ImageInput:
        return encode_png(image_of(number))[:CUT]

    with SynodClient(service.url, timeout_s=120, by_digest=True, transport=Counting(seen)) as client:
        while time.monotonic() < ends_s:
            kind = "nan" if lane == 0 else "colour"
            score(client, fresh(PER_REQUEST), kind, tally, either)
            if lane == 1:
                score(client, fresh(1), kind, tally, corrupt)
                client.put_images([either(number) for number in fresh(2)])
            time.sleep(PAUSE_S)


def _watch(service: Running, ends_s: float, period_s: float) -> list[Sample]:
    """Sample (seconds since the start, RSS in MiB by deployment) once per period."""
    pids = {name: service.pids(name) for name in DEPLOYMENTS}
    began_s, samples = time.monotonic(), list[Sample]()
    while time.monotonic() < ends_s or len(samples) < 3:
        rss = {name: service.rss_mib(found) for name, found in pids.items()}
        samples.append((time.monotonic() - began_s, rss))
        time.sleep(period_s)
    return samples


def memory_figures(samples: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Summarise memory: first, medians of two thirds, maximum (MiB); slope of the second half."""
    rss = [mib for _, mib in samples]
    third, half = len(rss) // 3, len(rss) // 2
    hours = np.array([at_s for at_s, _ in samples[half:]]) / 3600
    slope = float(np.polyfit(hours, rss[half:], 1)[0]) if len(hours) > 1 else 0.0
    found = {
        "first": rss[0],
        "second_third": statistics.median(rss[third : 2 * third] or rss),
        "last_third": statistics.median(rss[2 * third :] or rss),
        "most": max(rss),
        "slope_mib_per_hour": slope,
    }
    return {name: round(mib, 1) for name, mib in found.items()} | {"samples": len(samples)}
