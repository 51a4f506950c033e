"""The gateway's one job: admit a request, decode its pictures once, ask every scorer at once, gather, combine.

Knows no HTTP and no ray. A bad item fails alone; a lost replica is asked again within the deadline (scoring is
idempotent); what is not done at the deadline is a DeadlineExceeded failure, and the rest is kept.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from services.backends import ScorerBackend, Staged
from services.gateway import metrics
from services.gateway.admit import Plan, admit
from services.settings import EnsembleSettings, LimitSettings, ServerSettings
from synod.contracts import ItemResult, Outcome, Score, ScoreFailure, ScoreItem, ScoreRequest, ScoreResponse
from synod.errors import DeadlineExceeded, ImageTooLarge, ReplicaLost, ScorerFailed, SynodError, Unavailable
from synod.images import ImageLimits, decode_item

log = logging.getLogger("synod.gateway")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
WORTH_ASKING_AGAIN = frozenset({Unavailable.code, ReplicaLost.code})
DECODED_PER_BODY_BYTE = 16  # bounds what all pictures of a request may unfold to, by the limit of its body
ANSWER_MARGIN_S = 0.1  # a replica answers this long before the deadline, so that what it finished still arrives


class Gateway:
    """Scores requests through a backend. One instance a gateway process; `close` ends its decoding threads."""

    def __init__(
        self,
        backend: ScorerBackend,
        ensembles: Mapping[str, EnsembleSettings],
        limits: LimitSettings,
        server: ServerSettings,
    ) -> None:
        self.backend = backend
        self.ensembles = ensembles
        self.limits = limits
        self._server = server
        self._image_limits = ImageLimits(max_bytes=limits.max_image_bytes, max_pixels=limits.max_image_pixels)
        self._decoders = ThreadPoolExecutor(thread_name_prefix="decode")

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """One result per item, in order. Raises InvalidRequest, or a child of it, when the request as a whole is bad.

        `timeout_ms` counts from here: the body has been read.
        """
        began_s = time.monotonic()
        plan = admit(request, self.backend.specs, self.ensembles, self.limits, self._server.max_timeout_ms)
        ends_s = began_s + (request.timeout_ms or self._server.default_timeout_ms) / 1000
        metrics.ITEMS.inc(len(request.items))
        decoded = await self._decode(request.items, ends_s)
        answers = await self._ask_all(plan, decoded, ends_s)
        results = []
        for i, item in enumerate(decoded):
            scores: dict[str, Outcome] = {
                name: item if isinstance(item, ScoreFailure) else answers[name][i] for name in plan.scorers_of[i]
            }
            results.append(ItemResult(scores, plan.reward(i, scores)))
        _count(plan, results)
        return ScoreResponse(tuple(results), request.request_id or uuid.uuid4().hex)

    def close(self) -> None:
        """End the decoding threads."""
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def _decode(self, items: Sequence[ScoreItem], ends_s: float) -> list[ScoreItem | ScoreFailure]:
        """Each item with its pictures decoded, or why not. References that items have in common are decoded once."""
        loop = asyncio.get_running_loop()
        room = _Room(self.limits.max_body_bytes * DECODED_PER_BODY_BYTE)

        def work(item: ScoreItem) -> asyncio.Future[ScoreItem | ScoreFailure]:
            return loop.run_in_executor(self._decoders, _decode_one, item, self._image_limits, room)

        common = {references: work(ScoreItem(references=references)) for references in set(map(_encoded, items))}
        own = [work(replace(item, references=()) if _encoded(item) else item) for item in items]
        late = ScoreFailure.of(DeadlineExceeded("the pictures were not decoded in time; raise 'timeout_ms' or retry"))
        try:
            await asyncio.wait([*common.values(), *own], timeout=max(0.0, ends_s - time.monotonic()))
            done = {future: future.result() if future.done() else late for future in (*common.values(), *own)}
            return [_joined(done[one], done[common[_encoded(item)]]) for item, one in zip(items, own, strict=True)]
        finally:
            for future in (*common.values(), *own):
                future.cancel()

    async def _ask_all(
        self, plan: Plan, decoded: Sequence[ScoreItem | ScoreFailure], ends_s: float
    ) -> dict[str, dict[int, Outcome]]:
        """Per scorer, the outcome of each item that needs it and could be decoded. All scorers work at once."""
        good = [i for i, item in enumerate(decoded) if isinstance(item, ScoreItem)]
        asked = {name: [i for i in good if name in plan.scorers_of[i]] for name in plan.scorers}
        hollow = ScoreItem()  # holds the place of an item without a picture, so that indexes stay the request's own
        items = tuple(item if isinstance(item, ScoreItem) else hollow for item in decoded)
        staged = await self.backend.stage(items, sum(bool(indexes) for indexes in asked.values()))
        calls = [self._ask(name, staged, indexes, ends_s) for name, indexes in asked.items() if indexes]
        return dict(zip((n for n in asked if asked[n]), await asyncio.gather(*calls), strict=True))

    async def _ask(self, scorer: str, staged: Staged, indexes: list[int], ends_s: float) -> dict[int, Outcome]:
        """The outcome of each index. What a lost replica took along is asked again, after growing, jittered pauses."""
        outcomes: dict[int, Outcome] = {}
        pause_s = FIRST_PAUSE_S
        with metrics.SCORER_SECONDS.labels(scorer).time():
            while True:
                answers = await self._call(scorer, staged, indexes, ends_s - time.monotonic())
                outcomes.update(zip(indexes, answers, strict=True))
                indexes = [i for i in indexes if _worth_asking_again(outcomes[i])]
                if not indexes or time.monotonic() + pause_s >= ends_s:
                    return outcomes
                metrics.RETRIES.labels(scorer).inc()
                await asyncio.sleep(random.uniform(pause_s / 2, pause_s))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _call(self, scorer: str, staged: Staged, indexes: list[int], left_s: float) -> list[Outcome]:
        """One call of the backend; whatever becomes of it, one outcome per index."""
        error: SynodError
        try:
            async with asyncio.timeout(left_s):
                margin_s = min(ANSWER_MARGIN_S, left_s / 10)
                answers = await self.backend.score(scorer, staged, indexes, left_s - margin_s)
            if len(answers) == len(indexes):
                return answers
            error = ScorerFailed(f"scorer '{scorer}' gave {len(answers)} outcomes for {len(indexes)} items")
        except TimeoutError:
            error = DeadlineExceeded(f"scorer '{scorer}' did not answer in time; raise 'timeout_ms' or retry")
        except SynodError as known:
            error = known
        except Exception as unknown:  # a rim: one scorer's trouble must not take the others' answers along
            log.exception("scorer '%s' failed", scorer)
            error = ScorerFailed(f"scorer '{scorer}' failed with {type(unknown).__name__}")
        return [ScoreFailure.of(error)] * len(indexes)


@dataclass(slots=True)
class _Room:
    """Bytes of pixels that a request may still unfold to: small files can hold large pictures."""

    left_bytes: int
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        if self.left_bytes < 0:
            raise ImageTooLarge("the pictures of this request are too large together; send fewer at once")

    def take(self, item: ScoreItem) -> None:
        with self._lock:
            self.left_bytes -= sum(picture.nbytes for picture in item.pictures() if not isinstance(picture, bytes))


def _decode_one(item: ScoreItem, limits: ImageLimits, room: _Room) -> ScoreItem | ScoreFailure:
    try:
        room.check()
        decoded = decode_item(item, limits)
        room.take(decoded)
        return decoded
    except SynodError as error:
        return ScoreFailure.of(error)


def _encoded(item: ScoreItem) -> tuple[bytes, ...]:
    """The item's references when all of them are encoded, so that equal ones are seen; else none."""
    encoded = tuple(reference for reference in item.references if isinstance(reference, bytes))
    return encoded if len(encoded) == len(item.references) else ()


def _joined(own: ScoreItem | ScoreFailure, common: ScoreItem | ScoreFailure) -> ScoreItem | ScoreFailure:
    if isinstance(own, ScoreFailure):
        return own
    if isinstance(common, ScoreFailure):
        return common
    return replace(own, references=own.references or common.references)


def _worth_asking_again(outcome: Outcome) -> bool:
    return isinstance(outcome, ScoreFailure) and outcome.code in WORTH_ASKING_AGAIN


def _count(plan: Plan, results: Sequence[ItemResult]) -> None:
    for name in plan.scorers:
        outcomes = [result.scores[name] for result in results if name in result.scores]
        metrics.SCORES.labels(name).inc(sum(isinstance(outcome, Score) for outcome in outcomes))
        for outcome in outcomes:
            if isinstance(outcome, ScoreFailure):
                metrics.FAILURES.labels(name, outcome.code).inc()
