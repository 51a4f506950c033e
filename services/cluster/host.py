"""The deployment class of every scorer: one process, with one scorer and those whose settings put them beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.backends import Loaded
from services.cluster.golden_probe import DEFAULT_TIMEOUTS, ProbeTimeouts
from services.cluster.replica import Build, Replica
from services.observability import tracing
from services.scorers.base import ScorerSpec
from services.settings import TracingSettings
from services.settings_types import ScorerSettings
from synod import memory
from synod.contracts import Outcome, ScoreItem


class Host:
    """Replicas of several scorers, loaded one after the other, so that they share the models they have in common. Each
    keeps a queue, a batch and a golden verdict of its own; when one verdict is bad, the process is replaced."""

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
        self._replicas = {
            name: Replica(spec, settings[name], golden_file, build, timeouts) for name, spec in specs.items()
        }

    async def score(
        self,
        scorer: str,
        items: Sequence[ScoreItem],
        indexes: Sequence[int],
        timeout_s: float,
        traceparent: str | None = None,
    ) -> list[Outcome]:
        """As `Replica.score`, by the scorer of that name."""
        with tracing.use_span(tracing.Span(traceparent)):
            return await self._replicas[scorer].score(items, indexes, timeout_s)

    async def loaded(self) -> dict[str, Loaded]:
        """Per scorer, what loading it found."""
        return {name: replica.loaded for name, replica in self._replicas.items()}

    async def check_health(self) -> None:
        """As `Replica.check_health`, of all."""
        for replica in self._replicas.values():
            await replica.check_health()
