"""Host: the deployment class of every scorer; one process with one scorer and those that are colocated with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.backends import Loaded
from services.batching import BatchThread
from services.cluster.golden_probe import DEFAULT_TIMEOUTS, ProbeTimeouts
from services.cluster.replica import Build, Replica
from services.observability import tracing
from services.scorers.base import ScorerSpec
from services.settings import TracingSettings
from services.settings_types import ScorerSettings
from synod import memory
from synod.contracts import Outcome, ScoreItem


class Host:
    """Replicas of several scorers in one process: one queue and golden verdict each, one batch at a time for all.

    They load one after another and so share the models they have in common. One bad verdict replaces the process.
    Judges, whose batches wait for another server, have threads of their own.
    """

    def __init__(
        self,
        specs: Mapping[str, ScorerSpec],
        settings: Mapping[str, ScorerSettings],
        golden_file: str | None,
        build: Build,
        timeouts: ProbeTimeouts = DEFAULT_TIMEOUTS,
        traces: TracingSettings | None = None,
    ) -> None:
        memory.keep_freed_memory()
        tracing.start(traces or TracingSettings(), "synod-replica")
        shared = BatchThread()
        self._replicas = {
            name: Replica(spec, settings[name], golden_file, build, timeouts, None if settings[name].remote else shared)
            for name, spec in specs.items()
        }

    async def score(
        self,
        scorer: str,
        items: Sequence[ScoreItem],
        indexes: Sequence[int],
        timeout_s: float,
        traceparent: str | None = None,
    ) -> list[Outcome]:
        """Score as `Replica.score` does, by the scorer of that name, within the span that `traceparent` names."""
        with tracing.use_span(tracing.Span(traceparent)):
            return await self._replicas[scorer].score(items, indexes, timeout_s)

    async def loaded(self) -> dict[str, Loaded]:
        """Return per scorer what loading it found."""
        return {name: replica.loaded for name, replica in self._replicas.items()}

    async def check_health(self) -> None:
        """Check every scorer as `Replica.check_health` does."""
        for replica in self._replicas.values():
            await replica.check_health()
