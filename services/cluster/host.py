"""Host: the Ray Serve deployment class. Each Host process runs one scorer and the scorers colocated with it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import ray

from services.backends import Loaded
from services.batching import BatchThread
from services.cluster.golden_probe import DEFAULT_TIMEOUTS, ProbeTimeouts
from services.cluster.hosted_scorer import Build, HostedScorer
from services.models.image_memo import MEMO
from services.observability import tracing
from services.scorers.base import ScorerSpec
from services.settings import TracingSettings
from services.settings_types import ScorerSettings
from synod import memory
from synod.contracts import Outcome, ScoreItem


@dataclass(frozen=True, slots=True)
class SharedItems:
    """Items in Ray's object store, wrapped so that Ray does not dereference them on every call."""

    reference: ray.ObjectRef[tuple[ScoreItem, ...]]


class Host:
    """The scorers of one process.

    Each scorer has its own queue and health check. All share one batch thread, so the process runs one batch at a time.
    The exception is scorers that call an external API (judge models): they mostly wait, so each has its own thread.
    Scorers load one after another, so that they share the models they have in common. If any scorer fails its check,
    Serve restarts the process.
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
        # Cache what models compute from an image, for the other scorers. A single scorer would never reuse it.
        MEMO.enabled = len(specs) > 1
        self._fetches: WeakValueDictionary[str, asyncio.Task[tuple[ScoreItem, ...]]] = WeakValueDictionary()
        # asyncio itself keeps no strong reference to a running task
        self._pending: set[asyncio.Task[tuple[ScoreItem, ...]]] = set()
        shared = BatchThread()
        self._scorers: dict[str, HostedScorer] = {}
        for name, spec in specs.items():
            thread = BatchThread() if settings[name].calls_external_api else shared
            self._scorers[name] = HostedScorer(spec, settings[name], golden_file, build, timeouts, thread)

    async def score(
        self,
        scorer: str,
        sent: Sequence[ScoreItem] | SharedItems,
        indexes: Sequence[int],
        timeout_s: float,
        traceparent: str | None = None,
    ) -> list[Outcome]:
        """Score items with the named scorer, as `HostedScorer.score` does, within the span of `traceparent`."""
        # Keep `fetch` alive until this call ends: `_pending` drops it once it is done and `_fetches` is weak, but later
        # calls of the same request should still find it.
        fetch = self._fetch(sent) if isinstance(sent, SharedItems) else None
        items = sent if fetch is None else await asyncio.shield(fetch)
        assert not isinstance(items, SharedItems)
        with tracing.use_span(tracing.Span(traceparent)):
            return await self._scorers[scorer].score(items, indexes, timeout_s)

    def _fetch(self, sent: SharedItems) -> asyncio.Task[tuple[ScoreItem, ...]]:
        """Return the task that fetches these items.

        Concurrent calls of one request share the task, and therefore the image arrays.
        """
        key = sent.reference.hex()
        fetch = self._fetches.get(key)
        if fetch is None:
            fetch = self._fetches[key] = asyncio.ensure_future(_get(sent.reference))
            self._pending.add(fetch)
            fetch.add_done_callback(self._pending.discard)
        return fetch

    async def loaded(self) -> dict[str, Loaded]:
        """Return each scorer's load report."""
        return {name: scorer.loaded for name, scorer in self._scorers.items()}

    async def check_health(self) -> None:
        """Check every scorer as `HostedScorer.check_health` does."""
        for scorer in self._scorers.values():
            await scorer.check_health()


async def _get(reference: ray.ObjectRef[tuple[ScoreItem, ...]]) -> tuple[ScoreItem, ...]:
    items: tuple[ScoreItem, ...] = await reference
    return items
