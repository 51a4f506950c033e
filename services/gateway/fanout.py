"""Fan a request out to its scorers: return cached scores, join in-flight work, compute the rest.

    claim scores -> reserve a place in each scorer's queue and the pixels of the images -> decode images -> per scorer:
    wait for its turn, call the backend, settle the claims

A claim is this request's exclusive right to compute a score that is neither cached nor in flight in another request.
Settling the claim publishes the outcome to the requests that wait for it. Without an outcome it abandons the claim, and
a waiting request takes it over.

At the deadline, and when the caller disconnects, queued work is dropped. Work that a replica has started is cancelled
only after KEEP_AFTER_DEADLINE_S or KEEP_AFTER_DISCONNECT_S, so that a repeated request can find its scores. In all
cases every claim is settled, and every place in a queue and all pixels are released.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from services.backends import ScorerBackend, Staged, batch_cost
from services.gateway.admission import Admission, Priority, Ticket
from services.gateway.claims import Claims, Outcomes
from services.gateway.decode import Decoder
from services.gateway.quota import DecodedPixels
from services.gateway.store import Store
from services.observability import metrics, tracing
from synod.contracts import Outcome, ScoreFailure, ScoreItem
from synod.errors import DeadlineExceeded, Overloaded, ReplicaLost, ScorerFailed, SynodError, Unavailable
from synod.retry import RetryPolicy

KEEP_AFTER_DISCONNECT_S: Final = 1.0  # how long started work goes on after a disconnect
KEEP_AFTER_DEADLINE_S: Final = 30.0  # and after a deadline
CLAIM_EXPIRY_MARGIN_S: Final = 5.0  # claims expire this long after the last work can end, in case their gateway dies
RESPONSE_MARGIN_S: Final = 0.1  # a replica responds this long before the deadline, so that its scores arrive in time
MAX_LOSSES: Final = 2  # of replicas during one call, before its items are sent in halves
BACKOFF: Final = RetryPolicy(base_s=0.1, max_s=1.0)
RETRIED_CODES: Final = frozenset({Unavailable.code, ReplicaLost.code, Overloaded.code})
log = logging.getLogger("synod.gateway")


@dataclass(frozen=True, slots=True)
class GatewayContext:
    """State shared by all requests.

    `tasks` are the running scorer calls, including those whose request has ended. `suspects` has a lock for each
    scorer, for calls that may hold an item that kills its replica.
    """

    backend: ScorerBackend
    store: Store
    admission: Admission
    decoder: Decoder
    pixels: DecodedPixels
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    suspects: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))


class Fanout:
    """The scoring of one request. Iterate over `parts` once; closing the iterator early drops the queued work.

    `scorers_of[i]` are the scorers of item i. `sent` holds the items as they arrived, `items` the same with digests
    replaced by images, which have `pixels` pixels when decoded. `deadline_s` is a `time.monotonic()` timestamp.
    """

    def __init__(
        self,
        context: GatewayContext,
        scorers_of: Sequence[Sequence[str]],
        sent: Sequence[ScoreItem],
        items: Sequence[ScoreItem],
        pixels: int,
        priority: Priority,
        deadline_s: float,
    ) -> None:
        self._context, self._items, self._pixels = context, items, pixels
        self._priority: Priority = priority
        self._deadline_s = deadline_s
        self._specs = context.backend.specs
        # the model, weights and rules behind a score are part of its cache key; without them it is not shared
        score_origins = {name: spec.origin for name, spec in self._specs.items() if spec.origin}
        expire_s = deadline_s + KEEP_AFTER_DEADLINE_S + CLAIM_EXPIRY_MARGIN_S
        self._claims = Claims(context.store, sent, scorers_of, score_origins, expire_s)
        self._tickets: dict[str, Ticket] = {}
        self._staged = Staged(())
        self._pixel_users = 0  # of the decoded images: the request until its work has begun, then each task

    async def parts(self) -> AsyncGenerator[tuple[str, Outcomes]]:
        """Yield (scorer, outcomes) as they become known. May raise Overloaded, but only before the first pair."""
        tasks: dict[asyncio.Task[Outcomes], str] = {}
        try:
            cached = await self._claims.acquire()
            tracing.current().set(known=sum(map(len, cached.values())))
            self._tickets = self._context.admission.reserve(await self._costs(), self._priority)
            self._take_pixels()
            try:
                failed = await self._decode()
                tasks = {asyncio.create_task(self._score(name)): name for name in self._claims.unfinished_scorers()}
                for task in tasks:
                    self._keep_pixels_for(task)
            finally:
                self._drop_pixels()
            # all work has begun: a caller that reads slowly delays neither its deadline nor those who wait for it
            for found in (cached, failed):
                for name, outcomes in found.items():
                    yield name, self._claims.with_duplicates(name, outcomes)
            pending = set(tasks)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield tasks[task], self._claims.with_duplicates(tasks[task], task.result())
        finally:
            for task in tasks:
                task.cancel()
            for ticket in self._tickets.values():
                ticket.release()
            await self._claims.release()

    def _take_pixels(self) -> None:
        """Count the images against the pixels that a gateway may hold, if any is to be decoded. Raises Overloaded."""
        if not self._claims.unfinished_scorers():
            self._pixels = 0
        self._context.pixels.take(self._pixels)
        self._pixel_users = 1

    def _keep_pixels_for(self, task: asyncio.Task[Any]) -> None:
        """Keep the decoded images until `task` has ended, however it ends."""
        self._pixel_users += 1
        task.add_done_callback(self._drop_pixels)

    def _drop_pixels(self, _: object = None) -> None:
        """End one use of the decoded images. The last one frees them: a caller that reads slowly holds no pixels."""
        self._pixel_users -= 1
        if self._pixel_users == 0:
            self._staged = Staged(())
            self._context.pixels.release(self._pixels)

    async def _decode(self) -> dict[str, Outcomes]:
        """Decode the items that still need scores. Stage those that decode; return failures for those that do not."""
        needed = self._claims.unfinished_items()
        with metrics.STAGE_SECONDS.labels("decode").time(), tracing.span("decode", items=len(needed)):
            found = await self._context.decoder.decode([self._items[i] for i in needed], self._deadline_s)
        decoded = dict(zip(needed, found, strict=True))
        failed = await self._claims.fail({i: bad for i, bad in decoded.items() if isinstance(bad, ScoreFailure)})
        scorers_left = {name for name, indexes in self._claims.owned.items() if indexes}
        for name in self._tickets.keys() - scorers_left:
            self._tickets.pop(name).release()
        placeholder = ScoreItem()  # fills the slots of items that need no score, so that indexes match the request
        good = {i: item for i, item in decoded.items() if isinstance(item, ScoreItem)}
        if good:
            items = tuple(good.get(i, placeholder) for i in range(len(self._items)))
            # put the items where replicas can read them, once for all scorers
            self._staged = await self._context.backend.stage(items, len(scorers_left))
        return failed

    async def _score(self, name: str) -> Outcomes:
        """Return the outcomes of one scorer: compute owned scores, then wait for those that other requests compute."""
        outcomes: Outcomes = {}
        owned, in_flight = self._claims.owned.get(name, []), self._claims.in_flight.get(name, [])
        with tracing.span(f"scorer {name}") as span:
            while owned or in_flight:
                if owned:
                    outcomes.update(await self._compute(name, owned))
                if in_flight:
                    with tracing.span("shared", items=len(in_flight)):
                        outcomes.update(await self._claims.wait(name, in_flight, self._deadline_s - time.monotonic()))
                unresolved = [i for i in in_flight if i not in outcomes]
                if unresolved and time.monotonic() >= self._deadline_s:
                    outcomes.update(dict.fromkeys(unresolved, _late(f"scorer '{name}' did not respond in time")))
                    break
                cached, owned, in_flight = await self._claims.claim_abandoned(name, unresolved)
                outcomes.update(cached)
            span.set(items=len(outcomes))
            span.set_outcome(*sorted({one.code for one in outcomes.values() if isinstance(one, ScoreFailure)}))
        return outcomes

    async def _compute(self, name: str, indexes: list[int]) -> Outcomes:
        """Compute owned scores; items that are not scored by the deadline are DeadlineExceeded failures."""
        ticket = self._tickets.pop(name, None)
        if ticket is None:  # taken over from a request that abandoned these items; they are admitted already
            queue = self._context.admission.queue(name)
            ticket = queue.reserve(self._cost(name, indexes), self._priority, admitted=True)
        outcomes: Outcomes = {}
        may_outlive_request = self._claims.detach(name, indexes)  # False if the store cannot keep the scores
        work = asyncio.create_task(self._call(name, indexes, ticket, outcomes))
        self._keep_pixels_for(work)
        self._context.tasks.add(work)
        work.add_done_callback(self._context.tasks.discard)
        try:
            await asyncio.wait([work], timeout=max(0.0, self._deadline_s - time.monotonic()))
        except asyncio.CancelledError:
            _cancel_after(KEEP_AFTER_DISCONNECT_S if ticket.running and may_outlive_request else 0.0, work)
            raise
        if work.done():
            work.result()
            return outcomes
        _cancel_after(KEEP_AFTER_DEADLINE_S if ticket.running and may_outlive_request else 0.0, work)
        if ticket.running:
            late = _late(f"scorer '{name}' did not respond in time")
        else:
            late = _late(f"the request waited in the queue of scorer '{name}' until its deadline")
            metrics.REJECTS.labels(late.code).inc()
        return {i: outcomes.get(i, late) for i in indexes}

    async def _call(self, name: str, indexes: list[int], ticket: Ticket, outcomes: Outcomes) -> None:
        """Wait for the turn of this call, add its outcomes to `outcomes`, and settle its claims."""
        queued_s = time.monotonic()
        try:
            with tracing.span("queue", images=ticket.images):
                await ticket.turn()
            metrics.STAGE_SECONDS.labels("queue").observe(time.monotonic() - queued_s)
            with tracing.span("call", remote=True, items=len(indexes)):
                call = partial(_call_backend, self._context.backend, name, self._staged, self._deadline_s)
                suspects = self._context.suspects[name]
                await score_with_retries(call, name, suspects, indexes, self._deadline_s, outcomes)
        finally:
            ticket.release()
            await self._claims.settle({name: {i: outcomes.get(i) for i in indexes}})

    async def _costs(self) -> dict[str, int]:
        """Return the cost of this request for each scorer; files' headers, for sized ones, are read in a thread."""
        owned = self._claims.owned

        def costs() -> dict[str, int]:
            return {name: self._cost(name, indexes) for name, indexes in owned.items()}

        return await asyncio.to_thread(costs) if any(self._specs[name].sized for name in owned) else costs()

    def _cost(self, name: str, indexes: Sequence[int]) -> int:
        return sum(batch_cost(self._specs[name], self._items[i]) for i in indexes)


def _cancel_after(delay_s: float, work: asyncio.Task[None]) -> None:
    if delay_s > 0:
        asyncio.get_running_loop().call_later(delay_s, work.cancel)
    else:
        work.cancel()


def _late(why: str) -> ScoreFailure:
    return ScoreFailure.of(DeadlineExceeded(f"{why}; raise 'timeout_ms' or retry"))


def _killed(scorer: str, losses: int) -> ScoreFailure:
    text = f"{losses} replicas of scorer '{scorer}' died while they scored this item, the last one only this item"
    return ScoreFailure.of(ScorerFailed(text))


async def score_with_retries(
    call: Callable[[list[int]], Awaitable[list[Outcome]]],
    scorer: str,
    suspects: asyncio.Lock,
    indexes: list[int],
    deadline_s: float,
    outcomes: Outcomes,
) -> None:
    """Score the items at `indexes` by `call` into `outcomes`. Retries items whose replica died, was full or is absent.

    Raises nothing but CancelledError. No retry starts after `deadline_s`; a call that has started may end later.
    Admission never sends a replica more than it can hold, so a replica is full only briefly, while it still works on
    calls from a gateway that died; a retry is worthwhile.

    Items that have lost MAX_LOSSES replicas may hold one that kills its replica. They are sent again in halves, as
    often as they lose another one, down to the single item, which fails. A replica that dies loses the calls of other
    requests too. Therefore such calls of a scorer take turns by `suspects`, so that none of them fails for another.
    """
    attempt = 0
    groups = [(indexes, 0)]  # with the number of replicas that each has lost
    with metrics.SCORER_SECONDS.labels(scorer).time():
        while groups:
            group, losses = groups.pop()
            async with suspects if losses >= MAX_LOSSES else contextlib.nullcontext():
                if attempt > 0 and time.monotonic() >= deadline_s:
                    return
                outcomes.update(zip(group, await call(group), strict=True))
            retried = [i for i in group if _failed_with(outcomes[i], RETRIED_CODES)]
            lost = any(_failed_with(outcomes[i], {ReplicaLost.code}) for i in retried)
            losses += lost
            if lost and losses > MAX_LOSSES and len(group) == 1:
                outcomes[group[0]] = _killed(scorer, losses)
                continue
            if not retried:
                continue
            middle = (len(retried) + 1) // 2 if lost and losses >= MAX_LOSSES else len(retried)
            groups += [(half, losses) for half in (retried[middle:], retried[:middle]) if half]
            pause_s = BACKOFF.backoff_s(attempt)
            if time.monotonic() + pause_s >= deadline_s:
                return
            metrics.RETRIES.labels(scorer).inc()
            tracing.current().event("retry", items=len(retried))
            await asyncio.sleep(pause_s)
            attempt += 1


async def _call_backend(
    backend: ScorerBackend, scorer: str, staged: Staged, deadline_s: float, indexes: list[int]
) -> list[Outcome]:
    """Call the backend once and return one outcome per index, whatever it raises."""
    left_s = deadline_s - time.monotonic()
    error: SynodError
    try:
        outcomes = await backend.score(scorer, staged, indexes, left_s - min(RESPONSE_MARGIN_S, left_s / 10))
        if len(outcomes) == len(indexes):
            return outcomes
        error = ScorerFailed(f"scorer '{scorer}' returned {len(outcomes)} outcomes for {len(indexes)} items")
    except SynodError as known:
        error = known
    except Exception as unknown:  # an error boundary: the failure of one scorer must not lose the scores of the others
        log.exception("scorer '%s' failed", scorer)
        error = ScorerFailed(f"scorer '{scorer}' failed with {type(unknown).__name__}")
    return [ScoreFailure.of(error)] * len(indexes)


def _failed_with(outcome: Outcome, codes: Set[str]) -> bool:
    return isinstance(outcome, ScoreFailure) and outcome.code in codes
