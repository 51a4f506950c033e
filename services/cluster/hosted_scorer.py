"""HostedScorer: one scorer of a `Host`. Loads it, checks it on the golden items, and scores in batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from services import golden
from services.backends import MAX_QUEUED_IMAGES, Loaded, batch_images
from services.batching import Batcher, BatchThread
from services.cluster.call_spans import CallSpans
from services.cluster.golden_probe import DEFAULT_TIMEOUTS, GoldenProbe, ProbeTimeouts
from services.cluster.warmup import warm_up
from services.models.module_stats import ParameterStats, record_modules
from services.observability import metrics
from services.scorers.base import Scorer, ScorerSpec, run_batch
from services.settings_types import ScorerSettings
from synod.contracts import Outcome, Score, ScoreItem
from synod.device_errors import is_device_lost
from synod.errors import ReplicaLost, Unavailable

Build = Callable[[str, ScorerSettings], Scorer]
log = logging.getLogger("ray.serve")


class HostedScorer:
    """One scorer in the process of a `Host`; its scores carry `spec.origin`.

    It is healthy only while its scores of the golden items match those recorded in `golden_file`, and until an error
    after which the process cannot use its device. Its batches run in `thread`, which other scorers may share.
    """

    def __init__(
        self,
        spec: ScorerSpec,
        settings: ScorerSettings,
        golden_file: str | None,
        build: Build,
        timeouts: ProbeTimeouts = DEFAULT_TIMEOUTS,
        thread: BatchThread | None = None,
    ) -> None:
        began_s = time.monotonic()
        thread = thread or BatchThread()
        name = self._name = spec.name
        self._origin = spec.origin
        self._device_error: str | None = None  # after which the process cannot use its device
        self._lost_batch = 0  # the number of the batch that raised it
        with record_modules() as modules:
            self._scorer = build(name, settings)
        loaded_s = time.monotonic()
        stats = ParameterStats.of(modules)
        self.loaded = Loaded(loaded_s - began_s, stats.parameter_bytes, stats.device, stats.dtype)
        if settings.serving.compile:
            warm_up(self._scorer, settings.serving.max_batch_images)
        items = golden.load(Path(golden_file)) if golden_file else ()
        drift = golden.find_drift(self._scorer, items, settings.golden_tolerance)
        log.info("%s: loaded in %.1f s, golden in %.1f s", name, loaded_s - began_s, time.monotonic() - loaded_s)
        serving = settings.serving
        self._cost = partial(batch_images, self._scorer.spec)
        self._max_images = serving.max_batch_images
        self._batcher = Batcher(
            self._run,
            max_images=serving.max_batch_images,
            wait_s=serving.batch_wait_ms / 1000,
            max_queued=MAX_QUEUED_IMAGES,
            cost=self._cost,
            thread=thread,
        )
        probe = partial(self._batcher.score, first=True)
        self._call_spans = CallSpans(name, self._cost, serving.max_batch_images)
        free_for_s = partial(thread.free_for_s, self._batcher)
        self._golden_probe = GoldenProbe(name, items, settings.golden_tolerance, probe, timeouts, drift, free_for_s)

    async def score(self, items: Sequence[ScoreItem], indexes: Sequence[int], timeout_s: float) -> list[Outcome]:
        """Return one outcome per index into `items`, as `Batcher.score` does. Raises Overloaded and Unavailable."""
        held = metrics.HELD_IMAGES.labels(self._name)
        chosen = [items[i] for i in indexes]
        cost = self._cost(chosen)
        held.inc(cost)
        try:
            with self._call_spans.call(chosen):
                return await self._batcher.score(chosen, timeout_s)
        finally:
            held.dec(cost)

    async def check_health(self) -> None:
        """Raise RuntimeError if Serve must replace the process. Serve calls this at start and periodically.

        The result is that of the last golden probe, so this never waits for the device.
        """
        if self._device_error is not None:
            raise RuntimeError(f"scorer '{self._name}' cannot use its device any more: {self._device_error}")
        self._golden_probe.check(idle=self._batcher.held_images == 0)

    def _run(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        """Run a batch or a part of one. Raises what the scorer raises, or what `_check_device` raises."""
        self._check_device()
        users = self._golden_probe.users(items)
        with (
            self._golden_probe.running(items, self._batcher.batches),
            self._measured(users),
            self._call_spans.running(users),
        ):
            outcomes = self._call_scorer(items)
        return [replace(one, origin=self._origin) if isinstance(one, Score) else one for one in outcomes]

    def _call_scorer(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        try:
            return run_batch(self._scorer, items)
        except Exception as error:
            if not is_device_lost(error):
                raise
            log.error("%s: the device cannot be used any more; this process must be replaced: %s", self._name, error)
            self._device_error, self._lost_batch = str(error).partition("\n")[0], self._batcher.batches
        self._check_device()
        raise AssertionError("the device is lost")

    def _check_device(self) -> None:
        """Raise ReplicaLost for the batch that lost the device, and Unavailable for later ones, which never ran."""
        if self._device_error is None:
            return
        if self._batcher.batches == self._lost_batch:
            raise ReplicaLost(f"a replica of scorer '{self._name}' lost its device ({self._device_error}); retry")
        raise Unavailable(f"a replica of scorer '{self._name}' is being replaced because its device failed; retry")

    @contextmanager
    def _measured(self, items: Sequence[ScoreItem]) -> Iterator[None]:
        """Record the metrics of a batch: of the users' items in it, without golden items."""
        if not items:
            yield
            return
        images = self._cost(items)
        metrics.BATCH_ITEMS.labels(self._name).observe(len(items))
        metrics.BATCH_FILL.labels(self._name).observe(images / self._max_images)
        with metrics.BATCH_SECONDS.labels(self._name).time(), metrics.STAGE_SECONDS.labels("device").time():
            yield
