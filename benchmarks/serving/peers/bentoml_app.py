"""BentoML, JSON with base64. A batch has up to BENCH_BATCH items; BentoML adapts its size to the measured latency."""

from __future__ import annotations

import os
from typing import Any

import bentoml

from benchmarks.serving.jobs import Job, read_items

BATCH = int(os.environ["BENCH_BATCH"])


@bentoml.service(
    workers=1,
    traffic={"timeout": 300, "max_concurrency": 256},
    metrics={"enabled": True},
    logging={"access": {"enabled": False}},
)
class Rewards:
    def __init__(self) -> None:
        self._job = Job()

    @bentoml.api(route="/score", batchable=True, max_batch_size=BATCH, max_latency_ms=300_000)
    def score(self, items: list[dict[str, Any]]) -> list[dict[str, float]]:
        scores = self._job.score(read_items({"items": items}))
        return [dict(zip(scores, values, strict=True)) for values in zip(*scores.values(), strict=True)]
