"""Host: the deployment class of every scorer; one process with one scorer and those that are colocated with it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import ray

from services.backends import Loaded
from services.batching import BatchThread
from services.cluster.golden_probe import DEFAULT_TIMEOUTS, ProbeTimeouts
from services.cluster.replica import Build, Replica
from services.models.image_memo import MEMO
from services.observability import tracing
from services.scorers.base import ScorerSpec
from services.settings import TracingSettings
from services.settings_types import ScorerSettings
from synod import memory
from synod.contracts import Outcome, ScoreItem


@dataclass(frozen=True, slots=True)
class SharedItems:
    """Items in Ray's object store, as a reference that Ray does not resolve again for each call."""

    reference: ray.ObjectRef[tuple[ScoreItem, ...]]


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
        MEMO.enabled = len(specs) > 1
        self._fetches: WeakValueDictionary[str, asyncio.Task[tuple[ScoreItem, ...]]] = WeakValueDictionary()
        self._pending: set[asyncio.Task[tuple[ScoreItem, ...]]] = set()
        shared = BatchThread()
        self._replicas = {
            name: Replica(spec, settings[name], golden_file, build, timeouts, None if settings[name].remote else shared)
            for name, spec in specs.items()
        }

    async def score(
        self,
        scorer: str,
        sent: Sequence[ScoreItem] | SharedItems,
        indexes: Sequence[int],
        timeout_s: float,
        traceparent: str | None = None,
    ) -> list[Outcome]:
        """Score as `Replica.score` does, by the scorer of that name, within the span that `traceparent` names."""
        fetch = self._fetch(sent) if isinstance(sent, SharedItems) else None  # held until the end, for the other calls
        items = sent if fetch is None else await asyncio.shield(fetch)
        assert not isinstance(items, SharedItems)
        with tracing.use_span(tracing.Span(traceparent)):
            return await self._replicas[scorer].score(items, indexes, timeout_s)

    def _fetch(self, sent: SharedItems) -> asyncio.Task[tuple[ScoreItem, ...]]:
        """Return the one fetch of a request's items, which its calls in progress share, and so the arrays in them."""
        key = sent.reference.hex()
        fetch = self._fetches.get(key)
        if fetch is None:
            fetch = self._fetches[key] = asyncio.ensure_future(_get(sent.reference))
            self._pending.add(fetch)
            fetch.add_done_callback(self._pending.discard)
        return fetch

    async def loaded(self) -> dict[str, Loaded]:
        """Return per scorer what loading it found."""
        return {name: replica.loaded for name, replica in self._replicas.items()}

    async def check_health(self) -> None:
        """Check every scorer as `Replica.check_health` does."""
        for replica in self._replicas.values():
            await replica.check_health()


async def _get(reference: ray.ObjectRef[tuple[ScoreItem, ...]]) -> tuple[ScoreItem, ...]:
    items: tuple[ScoreItem, ...] = await reference
    return items
