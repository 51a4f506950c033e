"""One scorer's replica: loads the scorer, proves it on the golden items, and scores in batches beside the device."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from services import golden
from services.backends import batch_cost
from services.batching import Batcher
from services.gateway import metrics
from services.scorers.base import Scorer, ScorerSpec, run_batch
from services.settings import ScorerSettings
from synod.contracts import Outcome, Score, ScoreItem

Build = Callable[[str, ScorerSettings], Scorer]
log = logging.getLogger("ray.serve")


class Replica:
    """The deployment class of every scorer. `build` makes the scorer, `golden_file` gates it, and its scores name
    `spec.origin`."""

    def __init__(self, spec: ScorerSpec, settings: ScorerSettings, golden_file: str | None, build: Build) -> None:
        began_s = time.monotonic()
        name = self._name = spec.name
        self._origin = spec.origin
        self._scorer = build(name, settings)
        loaded_s = time.monotonic()
        items = golden.load(Path(golden_file)) if golden_file else ()
        self._drift = golden.drift(self._scorer, items, settings.golden_tolerance)
        log.info("%s: loaded in %.1f s, golden in %.1f s", name, loaded_s - began_s, time.monotonic() - loaded_s)
        serving = settings.serving
        self._max_images = serving.max_batch_images
        self._batcher = Batcher(
            self._run,
            max_images=serving.max_batch_images,
            wait_s=serving.batch_wait_ms / 1000,
            max_queued=serving.max_queued_images,
            cost=partial(batch_cost, self._scorer.spec),
        )

    async def score(self, items: Sequence[ScoreItem], indexes: Sequence[int], timeout_s: float) -> list[Outcome]:
        """One outcome per index into `items`, within `timeout_s`. Raises Overloaded and Unavailable."""
        held = metrics.HELD_IMAGES.labels(self._name)
        chosen = [items[i] for i in indexes]
        cost = sum(batch_cost(self._scorer.spec, item) for item in chosen)
        held.inc(cost)
        try:
            return await self._batcher.score(chosen, timeout_s)
        finally:
            held.dec(cost)

    def check_health(self) -> None:
        """Serve asks before it routes to this replica, and each second after. Raises on golden drift, at once."""
        if self._drift is not None:
            raise RuntimeError(f"scorer '{self._name}' is not the recorded one: {self._drift}")

    def _run(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        images = sum(batch_cost(self._scorer.spec, item) for item in items)
        metrics.BATCH_ITEMS.labels(self._name).observe(len(items))
        metrics.BATCH_FILL.labels(self._name).observe(images / self._max_images)
        with metrics.BATCH_SECONDS.labels(self._name).time(), metrics.STAGE_SECONDS.labels("device").time():
            outcomes = run_batch(self._scorer, items)
        return [replace(one, origin=self._origin) if isinstance(one, Score) else one for one in outcomes]
