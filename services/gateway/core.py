"""Score requests: validate, resolve image digests, fan out to the scorers, combine scores into rewards.

`_parts` does the work; `stream` yields its parts, and `score` collects them. An item that cannot be scored does not
fail the others. Scoring is idempotent, so calls to a replica that dies are retried until the deadline. Scores missing
by then become DeadlineExceeded failures; those already known are returned.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from services.backends import ScorerBackend
from services.combine import MissingPolicy, Weights, combine, required, weights_for
from services.gateway import counting
from services.gateway.admission import Admission
from services.gateway.catalogue import catalogue_of
from services.gateway.decode import Decoder
from services.gateway.fanout import Fanout, GatewayContext
from services.gateway.images import check_pixels, check_upload, resolve_digests
from services.gateway.quota import ANONYMOUS, Caller, DecodedPixels, Quotas
from services.gateway.store import MemoryStore, Store
from services.gateway.validate import validate
from services.observability import metrics
from services.settings import DEFAULT_TIMEOUT_MS, AdmissionSettings, EnsembleSettings, LimitSettings, StoreSettings
from synod.contracts import (
    Catalogue,
    ImageData,
    ItemResult,
    Outcome,
    Part,
    Rewards,
    ScoredItem,
    ScoreFailure,
    ScoreRequest,
    ScoreResponse,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request asks for.

    `scorers_of[i]` are the scorers that item i needs. `weights[i]` are the weights of its reward, a ScoreFailure if it
    can have no reward, or None if no reward was requested.
    """

    scorers_of: tuple[tuple[str, ...], ...]
    weights: tuple[Weights | ScoreFailure | None, ...]
    on_missing: MissingPolicy
    clip_at_zero: bool
    timeout_s: float

    def reward(self, i: int, scores: Mapping[str, Outcome]) -> Outcome | None:
        """Combine the scores of item i into its reward or a failure; None if no reward was requested."""
        weights = self.weights[i]
        if weights is None or isinstance(weights, ScoreFailure):
            return weights
        return combine(scores, weights, self.on_missing, clip_at_zero=self.clip_at_zero)


def plan_request(request: ScoreRequest, ensembles: Mapping[str, EnsembleSettings]) -> Plan:
    """Plan a valid request. An item needs the scorers that the request names and those with a weight above 0."""
    ensemble = None if request.ensemble is None else ensembles[request.ensemble]
    weights: list[Weights | ScoreFailure | None] = []
    for item in request.items:
        if request.weights is not None or ensemble is None or request.ensemble is None:
            weights.append(request.weights)
        else:
            weights.append(weights_for(request.ensemble, ensemble.weights, ensemble.by_kind, item.concept))
    weighted = [required(one) if isinstance(one, Mapping) else () for one in weights]
    return Plan(
        tuple(tuple(dict.fromkeys((*request.scorers, *names))) for names in weighted),
        tuple(weights),
        "fail" if ensemble is None else ensemble.missing,
        False if ensemble is None else ensemble.clip_at_zero,
        (request.timeout_ms or DEFAULT_TIMEOUT_MS) / 1000,
    )


class Gateway:
    """Scores requests with a backend. Each gateway process has one; `close` ends its threads and calls.

    If omitted, `admission` and `store` are built from the default settings; gateways may share a store. If
    `limits.max_request_pixels` is unset, it is derived from the memory of this machine.
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
        defaults = StoreSettings()
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.backend = backend
        self.ensembles = ensembles
        self._quotas = Quotas()
        self.limits = limits if limits.max_request_pixels else limits.fitted(memory_bytes)
        assert self.limits.max_request_pixels is not None
        self._context = GatewayContext(
            backend,
            store or MemoryStore(defaults.max_image_bytes, defaults.max_scores),
            admission or Admission({}, AdmissionSettings().max_queued_images, metrics.report_queue),
            Decoder(self.limits),
            DecodedPixels(self.limits.max_request_pixels),
        )

    async def score(self, request: ScoreRequest, caller: Caller = ANONYMOUS) -> ScoreResponse:
        """Return one result per item, in order. Raises what `stream` raises.

        The timeout starts here, after the request body has been read.
        """
        plan = self._plan(request)
        scores: list[dict[str, Outcome]] = [{} for _ in request.items]
        part: Part | None = None
        async with aclosing(self._parts(request, caller, plan)) as parts:
            async for part in parts:
                if isinstance(part, ScoredItem):
                    scores[part.index][part.scorer] = part.outcome
        assert isinstance(part, Rewards), "the rewards are the last part"
        results = tuple(
            ItemResult({name: item_scores[name] for name in names}, reward)
            for item_scores, names, reward in zip(scores, plan.scorers_of, part.rewards, strict=True)
        )
        return ScoreResponse(results, part.request_id)

    async def stream(self, request: ScoreRequest, caller: Caller = ANONYMOUS) -> AsyncGenerator[Part]:
        """Yield a part per item and scorer as soon as that scorer is done, in any order, and the rewards last.

        Raises before the first part: InvalidRequest and its subclasses, UnknownImage, and Overloaded if a queue or the
        caller's quota is full, or too many decoded pixels are held. Closing the generator abandons the request.
        """
        async with aclosing(self._parts(request, caller, self._plan(request))) as parts:
            async for part in parts:
                yield part

    def _plan(self, request: ScoreRequest) -> Plan:
        validate(request, self.backend.specs, self.ensembles, self.limits)
        return plan_request(request, self.ensembles)

    async def _parts(self, request: ScoreRequest, caller: Caller, plan: Plan) -> AsyncGenerator[Part]:
        deadline_s = time.monotonic() + plan.timeout_s
        request_id = request.request_id or uuid.uuid4().hex
        scores: list[dict[str, Outcome]] = [{} for _ in request.items]
        with counting.counted_request(), self._quotas.use(caller, len(scores)):
            items = await resolve_digests(request.items, self._context.store)
            pixels = await check_pixels(items, self.limits)
            counting.count_items(items)
            fanout = Fanout(self._context, plan.scorers_of, request.items, items, pixels, caller.priority, deadline_s)
            async with aclosing(fanout.parts()) as parts:
                async for scorer, outcomes in parts:
                    counting.count_scores(scorer, outcomes.values())
                    for i, outcome in outcomes.items():
                        scores[i][scorer] = outcome
                        yield ScoredItem(request_id, i, scorer, outcome)
        counting.count_rewards(request.items, scores, self.backend.specs)
        yield Rewards(request_id, tuple(plan.reward(i, item_scores) for i, item_scores in enumerate(scores)))

    async def put_images(self, images: Sequence[ImageData]) -> list[str]:
        """Store images and return their digests. Raises ImageTooLarge, PayloadTooLarge."""
        check_upload(images, self.limits)
        return await self._context.store.put(images)

    async def catalogue(self) -> Catalogue:
        """Return what is served, how each scorer was loaded, and the limits of a request."""
        return await catalogue_of(self.backend, self.ensembles, self.limits)

    def close(self) -> None:
        """End the decoding threads and the calls in progress."""
        self._context.decoder.close()
        for task in self._context.tasks:
            task.cancel()
