"""The gateway's one job: admit a request, find its images, ask every scorer at once, combine. Knows no HTTP, no ray.

`stream` is the work; `score` gathers it. A bad item fails alone; a lost replica is asked again within the deadline
(scoring is idempotent); what is not done at the deadline is a DeadlineExceeded failure, and the rest is kept.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import asdict, replace

from services.backends import ScorerBackend
from services.gateway.admission import Admission, Caller
from services.gateway.decode import Decoder
from services.gateway.fanout import Fanout, GatewayContext
from services.gateway.plan import Plan, plan_request
from services.gateway.store import MemoryStore, Store
from services.observability import metrics
from services.observability.reward_health import groups_of
from services.settings import (
    DEFAULT_TIMEOUT_MS,
    MAX_REFERENCES,
    MAX_SEGMENTS,
    MAX_TEXT_CHARS,
    AdmissionSettings,
    EnsembleSettings,
    LimitSettings,
    StoreSettings,
)
from synod.contracts import (
    Catalogue,
    EnsembleInfo,
    ImageData,
    ImageInput,
    ImageRef,
    ItemResult,
    Outcome,
    Part,
    Rewards,
    Score,
    ScoredItem,
    ScoreFailure,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
    ScorerInfo,
)
from synod.errors import ImageTooLarge, PayloadTooLarge, Unavailable, UnknownImage

ANONYMOUS = Caller()


class Gateway:
    """Scores requests through a backend. One instance a gateway process; `close` ends its threads and calls.

    `admission` and `store` default to those of default settings, and `limits.max_request_pixels` to what this
    machine's memory holds; gateways may share a store.
    """

    def __init__(
        self,
        backend: ScorerBackend,
        ensembles: Mapping[str, EnsembleSettings],
        limits: LimitSettings,
        *,
        admission: Admission | None = None,
        store: Store | None = None,
    ) -> None:
        kept = StoreSettings()
        self.backend = backend
        self.ensembles = ensembles
        self.limits = limits if limits.max_request_pixels else limits.fitted(_memory_bytes())
        self._context = GatewayContext(
            backend,
            store or MemoryStore(kept.max_image_bytes, kept.max_scores),
            admission or Admission({}, AdmissionSettings().max_queued_images, report_queue),
            Decoder(self.limits),
        )

    async def score(self, request: ScoreRequest, caller: Caller = ANONYMOUS) -> ScoreResponse:
        """One result per item, in order. Raises what `stream` raises.

        `timeout_ms` counts from here: the body has been read.
        """
        plan, ends_s = self._admit(request)
        found: list[dict[str, Outcome]] = [{} for _ in request.items]
        last: Part | None = None
        async with aclosing(self._parts(request, caller, plan, ends_s)) as parts:
            async for last in parts:
                if isinstance(last, ScoredItem):
                    found[last.index][last.scorer] = last.outcome
        assert isinstance(last, Rewards), "the rewards come last"
        results = tuple(
            ItemResult({name: scores[name] for name in names}, reward)
            for scores, names, reward in zip(found, plan.scorers_of, last.rewards, strict=True)
        )
        return ScoreResponse(results, last.request_id)

    async def stream(self, request: ScoreRequest, caller: Caller = ANONYMOUS) -> AsyncGenerator[Part]:
        """A part per item and scorer as soon as that scorer ends, in no order of either; the rewards last.

        Raises, before the first part, InvalidRequest or a child of it, UnknownImage, and Overloaded when a lane or the
        caller's quota is full. Closing the generator abandons the request.
        """
        async with aclosing(self._parts(request, caller, *self._admit(request))) as parts:
            async for part in parts:
                yield part

    def _admit(self, request: ScoreRequest) -> tuple[Plan, float]:
        """What is to be done, and until when (monotonic)."""
        began_s = time.monotonic()
        plan = plan_request(request, self.backend.specs, self.ensembles, self.limits)
        return plan, began_s + (request.timeout_ms or DEFAULT_TIMEOUT_MS) / 1000

    async def _parts(self, request: ScoreRequest, caller: Caller, plan: Plan, ends_s: float) -> AsyncGenerator[Part]:
        request_id = request.request_id or uuid.uuid4().hex
        scores: list[dict[str, Outcome]] = [{} for _ in request.items]
        with (
            metrics.STAGE_SECONDS.labels("total").time(),
            _counted(),
            self._context.admission.quota(caller, len(scores)),
        ):
            items = await self._with_images(request.items)
            await self._context.decoder.check(items)
            metrics.ITEMS.inc(len(items))
            metrics.IMAGES.inc(sum(len(item.images()) for item in items))
            fanout = Fanout(self._context, plan, request.items, items, caller.priority, ends_s)
            async with aclosing(fanout.parts()) as parts:
                async for scorer, outcomes in parts:
                    _count(scorer, outcomes.values())
                    for i, outcome in outcomes.items():
                        scores[i][scorer] = outcome
                        yield ScoredItem(request_id, i, scorer, outcome)
        self._count_rewards(request.items, scores)
        yield Rewards(request_id, tuple(plan.reward(i, found) for i, found in enumerate(scores)))

    def _count_rewards(self, items: Sequence[ScoreItem], scores: Sequence[Mapping[str, Outcome]]) -> None:
        """Add a finished request to the reward health of its scorers."""
        groups = groups_of(items)
        for name in {name for found in scores for name in found}:
            asked = [i for i, found in enumerate(scores) if name in found]
            place = {i: k for k, i in enumerate(asked)}
            within = [[place[i] for i in group if i in place] for group in groups]
            spec = self.backend.specs[name]
            metrics.count_rewards(name, [scores[i][name] for i in asked], within, spec.low, spec.high)

    async def put_images(self, images: Sequence[ImageData]) -> list[str]:
        """Keep images, so that requests may name them by digest. Raises ImageTooLarge and PayloadTooLarge."""
        if len(images) > self.limits.max_items:
            raise PayloadTooLarge(f"{len(images)} images, the limit is {self.limits.max_items} ([limits] max_items)")
        for i, image in enumerate(images):
            size = len(image) if isinstance(image, bytes) else image.nbytes
            most = self.limits.max_image_bytes if isinstance(image, bytes) else 3 * self.limits.max_image_pixels
            if size > most:
                raise ImageTooLarge(f"images[{i}] has {size} bytes, the limit is {most}; send a smaller image")
        return await self._context.store.put(images)

    async def catalogue(self) -> Catalogue:
        """What is served, how each scorer was loaded where a replica of it is ready, and the limits of a request."""
        loaded = await self.backend.loaded()
        scorers = [
            ScorerInfo(
                s.name, s.needs, s.low, s.high, s.source, s.summary, None if s.origin is None else s.origin.model
            )
            for s in self.backend.specs.values()
        ]
        ensembles = {
            name: EnsembleInfo(e.weights, {str(k): w for k, w in e.by_kind.items()}, e.missing, e.clip_at_zero)
            for name, e in self.ensembles.items()
        }
        return Catalogue(
            tuple(replace(one, **asdict(loaded[one.name])) if one.name in loaded else one for one in scorers),
            ensembles,
            {
                **self.limits.model_dump(mode="json"),
                "max_references": MAX_REFERENCES,
                "max_text_chars": MAX_TEXT_CHARS,
                "max_segments": MAX_SEGMENTS,
            },
        )

    def close(self) -> None:
        """End the decoding threads, and the calls that are still under way."""
        self._context.decoder.close()
        for task in self._context.tasks:
            task.cancel()

    async def _with_images(self, items: Sequence[ScoreItem]) -> tuple[ScoreItem, ...]:
        """The items with what they name by digest put in its place. Raises UnknownImage with all that is missing."""
        named = list(dict.fromkeys(p.digest for item in items for p in _images(item) if isinstance(p, ImageRef)))
        if not named:
            return tuple(items)
        kept = dict(zip(named, await self._context.store.get(named), strict=True))
        missing = [digest for digest, image in kept.items() if image is None]
        if missing:
            raise UnknownImage(
                f"{len(missing)} images are not here: {', '.join(missing)}; PUT them to /v1/images, then ask again",
                missing,
            )

        def found(image: ImageInput) -> ImageInput:
            if not isinstance(image, ImageRef):
                return image
            content = kept[image.digest]
            assert content is not None
            return content

        return tuple(
            replace(
                item,
                image=None if item.image is None else found(item.image),
                references=tuple(map(found, item.references)),
            )
            for item in items
        )


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _images(item: ScoreItem) -> tuple[ImageInput, ...]:
    return item.references if item.image is None else (*item.references, item.image)


def report_queue(scorer: str, came_s: float | None) -> None:
    """Tell the metrics when (monotonic) the call came that is next in a scorer's queue."""
    metrics.queue_oldest(scorer, None if came_s is None else time.time() - (time.monotonic() - came_s))


@contextmanager
def _counted() -> Iterator[None]:
    """Count a request that is refused before any work, by its reason."""
    try:
        yield
    except (Unavailable, UnknownImage, PayloadTooLarge) as refused:
        metrics.REJECTS.labels(refused.code).inc()
        raise


def _count(scorer: str, outcomes: Collection[Outcome]) -> None:
    metrics.SCORES.labels(scorer).inc(sum(isinstance(outcome, Score) for outcome in outcomes))
    for outcome in outcomes:
        if isinstance(outcome, ScoreFailure):
            metrics.FAILURES.labels(scorer, outcome.code).inc()
