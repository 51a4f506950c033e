"""One request, all its scorers: what is known is told, what others measure is awaited, the rest is measured.

    claim in the store -> a place in each lane -> decode -> per scorer: its turn, the backend, settle in the store

At the deadline, and when a caller leaves, what waits is dropped. What a replica has in hand goes on, so that a resubmit
finds its scores: for LINGER_S after a caller has left, for FINISH_S after a deadline, by which a replica begins nothing
more. It is cancelled then. Whatever happens, every claim is settled and every place given up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.backends import ScorerBackend, Staged, batch_cost
from services.gateway.admission import Admission, Priority, Ticket
from services.gateway.decode import Decoder
from services.gateway.keys import keys_of
from services.gateway.plan import Plan
from services.gateway.retry import score_with_retries
from services.gateway.store import Claim, ScoreKey, Store
from services.observability import metrics, tracing
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import DeadlineExceeded

LINGER_S: Final = 1.0
FINISH_S: Final = 30.0
LEASE_SLACK_S: Final = 5.0
_RESULTS: Final = {Claim.OWNED: "miss", Claim.IN_FLIGHT: "shared"}


@dataclass(frozen=True, slots=True)
class GatewayContext:
    """What every request of a gateway is worked with. `under_way`: calls, some of which nobody waits for any more."""

    backend: ScorerBackend
    store: Store
    admission: Admission
    decoder: Decoder
    under_way: set[asyncio.Task[None]] = field(default_factory=set)


class Fanout:
    """The work of one request. `parts` is to be read once; closing it early abandons the request.

    `sent` are the items as they came, `items` the same with their images at hand; `ends_s` is monotonic. It is made
    where its request's span is the current one.
    """

    def __init__(
        self,
        context: GatewayContext,
        plan: Plan,
        sent: Sequence[ScoreItem],
        items: Sequence[ScoreItem],
        priority: Priority,
        ends_s: float,
    ) -> None:
        self._context, self._plan, self._sent, self._items = context, plan, sent, items
        self._priority: Priority = priority
        self._ends_s = ends_s
        self._span = tracing.current()
        self._specs = context.backend.specs
        self._keys: list[dict[str, ScoreKey]] = []
        self._twin: dict[tuple[str, int], int] = {}  # of an item that repeats an earlier one: that one's index
        self._mine: dict[str, list[int]] = {}
        self._taken: dict[str, list[int]] = {}
        self._unsettled: set[ScoreKey] = set()
        self._tickets: dict[str, Ticket] = {}
        self._staged = Staged(())

    async def parts(self) -> AsyncGenerator[tuple[str, dict[int, Outcome]]]:
        """(scorer, outcomes by item index), as they become known. Raises Overloaded before any, if at all."""
        tasks: dict[asyncio.Task[dict[int, Outcome]], str] = {}
        try:
            known = await self._claim()
            self._span.set(known=sum(map(len, known.values())))
            self._reserve()
            for name, outcomes in known.items():
                yield name, self._with_twins(name, outcomes)
            failed = await self._decode()
            for name, outcomes in failed.items():
                yield name, self._with_twins(name, outcomes)
            names = [name for name in self._plan.scorers if self._mine.get(name) or self._taken.get(name)]
            tasks = {asyncio.create_task(self._traced(name)): name for name in names}
            left = set(tasks)
            while left:
                done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield tasks[task], self._with_twins(tasks[task], task.result())
        finally:
            for task in tasks:
                task.cancel()
            for ticket in self._tickets.values():
                ticket.release()
            await self._settle(dict.fromkeys(self._unsettled))

    async def _claim(self) -> dict[str, dict[int, Outcome]]:
        """Sort what is asked into known (returned), mine and taken."""
        self._keys = await asyncio.to_thread(self._find_keys) if self._context.store.keeps_scores else []
        first: dict[ScoreKey, tuple[str, int]] = {}
        for i, names in enumerate(self._plan.scorers_of):
            for name in names:
                key = self._key(name, i)
                if key is None:
                    self._mine.setdefault(name, []).append(i)
                elif key in first:
                    self._twin[name, i] = first[key][1]
                else:
                    first[key] = (name, i)
        known: dict[str, dict[int, Outcome]] = {}
        for (name, i), claim in zip(first.values(), await self._ask_store(list(first)), strict=True):
            if isinstance(claim, Score):
                known.setdefault(name, {})[i] = claim
            else:
                (self._mine if claim is Claim.OWNED else self._taken).setdefault(name, []).append(i)
        return known

    def _find_keys(self) -> list[dict[str, ScoreKey]]:
        origins = {name: spec.origin for name, spec in self._specs.items() if spec.origin}
        return [
            keys_of(item, {name: origins[name] for name in names if name in origins})
            for item, names in zip(self._sent, self._plan.scorers_of, strict=True)
        ]

    async def _ask_store(self, keys: list[ScoreKey]) -> list[Score | Claim]:
        if not keys:
            return []
        claims = await self._context.store.claim(keys, self._ends_s - time.monotonic() + FINISH_S + LEASE_SLACK_S)
        for claim in claims:
            metrics.CACHE.labels(_RESULTS[claim] if isinstance(claim, Claim) else "hit").inc()
        self._unsettled.update(key for key, claim in zip(keys, claims, strict=True) if claim is Claim.OWNED)
        return claims

    def _reserve(self) -> None:
        cost = {name: self._cost(name, indexes) for name, indexes in self._mine.items() if indexes}
        self._tickets = self._context.admission.reserve(cost, self._priority)

    def _cost(self, name: str, indexes: Sequence[int]) -> int:
        return sum(batch_cost(self._specs[name], self._items[i]) for i in indexes)

    async def _decode(self) -> dict[str, dict[int, Outcome]]:
        """Decode and stage what is still to be measured; what cannot be decoded is returned, and measured no more."""
        needed = sorted({i for asked in (self._mine, self._taken) for indexes in asked.values() for i in indexes})
        with metrics.STAGE_SECONDS.labels("decode").time(), self._span.child("decode", items=len(needed)):
            found = await self._context.decoder.decode([self._items[i] for i in needed], self._ends_s)
        decoded = dict(zip(needed, found, strict=True))
        bad = {i: failure for i, failure in decoded.items() if isinstance(failure, ScoreFailure)}
        failed: dict[str, dict[int, Outcome]] = {}
        for asked in (self._mine, self._taken):
            for name, indexes in asked.items():
                failed.setdefault(name, {}).update({i: bad[i] for i in indexes if i in bad})
                asked[name] = [i for i in indexes if i not in bad]
        keys = {key: bad[i] for name, found in failed.items() for i in found if (key := self._key(name, i))}
        await self._settle({key: failure for key, failure in keys.items() if key in self._unsettled})
        for name in [name for name in self._tickets if not self._mine[name]]:
            self._tickets.pop(name).release()
        hollow = ScoreItem()  # holds the place of what is not measured, so that indexes stay the request's own
        good = {i: item for i, item in decoded.items() if isinstance(item, ScoreItem)}
        items = tuple(good.get(i, hollow) for i in range(len(self._items)))
        self._staged = (
            await self._context.backend.stage(items, sum(map(bool, self._mine.values()))) if good else Staged(())
        )
        return {name: outcomes for name, outcomes in failed.items() if outcomes}

    async def _traced(self, name: str) -> dict[int, Outcome]:
        """The outcomes of one scorer, within a span that tells which failures are among them."""
        with self._span.child(f"scorer {name}") as span:
            outcomes = await self._scorer(name, span)
            span.set(items=len(outcomes))
            span.set_outcome(*sorted({o.code for o in outcomes.values() if isinstance(o, ScoreFailure)}))
        return outcomes

    async def _scorer(self, name: str, span: tracing.Span) -> dict[int, Outcome]:
        """The outcomes of one scorer: its own work first, then what others had claimed, or had given up."""
        outcomes: dict[int, Outcome] = {}
        mine, taken = self._mine.get(name, []), self._taken.get(name, [])
        while mine or taken:
            if mine:
                outcomes.update(await self._measure(name, mine, span))
            if taken:
                with span.child("shared", items=len(taken)):
                    taken = await self._await_others(name, taken, outcomes)
            claims = await self._ask_store([self._keys[i][name] for i in taken])
            outcomes.update({i: claim for i, claim in zip(taken, claims, strict=True) if isinstance(claim, Score)})
            mine = [i for i, claim in zip(taken, claims, strict=True) if claim is Claim.OWNED]
            taken = [i for i, claim in zip(taken, claims, strict=True) if claim is Claim.IN_FLIGHT]
        return outcomes

    async def _await_others(self, name: str, taken: list[int], outcomes: dict[int, Outcome]) -> list[int]:
        """Add what others' claims came to, and tell which were given up. After the deadline, none is."""
        left_s = self._ends_s - time.monotonic()
        found = await self._context.store.wait([self._keys[i][name] for i in taken], left_s)
        outcomes.update({i: outcome for i, outcome in zip(taken, found, strict=True) if outcome is not None})
        given_up = [i for i, outcome in zip(taken, found, strict=True) if outcome is None]
        if given_up and time.monotonic() >= self._ends_s:
            outcomes.update(dict.fromkeys(given_up, _late(f"scorer '{name}' did not answer in time")))
            return []
        return given_up

    async def _measure(self, name: str, indexes: list[int], span: tracing.Span) -> dict[int, Outcome]:
        """What is known by the deadline; the rest is late. The work may go on for a while (`_let_go`)."""
        ticket = self._tickets.pop(name, None)
        if ticket is None:  # another's claim on it, given up: what that one's place was, is now ours
            lane = self._context.admission.lane(name)
            ticket = lane.reserve(self._cost(name, indexes), self._priority, admitted=True)
        keys = self._own_keys(name, indexes).values()
        outcomes: dict[int, Outcome] = {}
        work = asyncio.create_task(self._work(name, indexes, ticket, outcomes, span))
        self._context.under_way.add(work)
        work.add_done_callback(self._context.under_way.discard)
        self._unsettled.difference_update(keys)
        try:
            await asyncio.wait([work], timeout=max(0.0, self._ends_s - time.monotonic()))
        except asyncio.CancelledError:
            _let_go(work, LINGER_S if ticket.running and keys else 0.0)
            raise
        if work.done():
            work.result()
            return outcomes
        _let_go(work, FINISH_S if ticket.running and keys else 0.0)
        if ticket.running:
            late = _late(f"scorer '{name}' did not answer in time")
        else:
            late = _late("its turn did not come in time")
            metrics.REJECTS.labels(late.code).inc()
        return {i: outcomes.get(i, late) for i in indexes}

    async def _work(
        self, name: str, indexes: list[int], ticket: Ticket, outcomes: dict[int, Outcome], span: tracing.Span
    ) -> None:
        """Fill `outcomes`, and settle what was claimed of them."""
        queued_s = time.monotonic()
        queue = span.child("queue", images=ticket.images)
        try:
            async with ticket.turn():
                metrics.STAGE_SECONDS.labels("queue").observe(time.monotonic() - queued_s)
                queue.end()
                with span.child("call", remote=True, items=len(indexes)) as call:
                    await score_with_retries(
                        self._context.backend, name, self._staged, indexes, self._ends_s, outcomes, call
                    )
        finally:
            queue.end()
            await self._settle({key: outcomes.get(i) for i, key in self._own_keys(name, indexes).items()})

    async def _settle(self, outcomes: Mapping[ScoreKey, Outcome | None]) -> None:
        self._unsettled.difference_update(outcomes)
        if outcomes:
            await self._context.store.settle(outcomes)

    def _key(self, name: str, i: int) -> ScoreKey | None:
        return self._keys[i].get(name) if self._keys else None

    def _own_keys(self, name: str, indexes: Sequence[int]) -> dict[int, ScoreKey]:
        return {i: key for i in indexes if (key := self._key(name, i)) is not None}

    def _with_twins(self, name: str, outcomes: Mapping[int, Outcome]) -> dict[int, Outcome]:
        twins = {i: outcomes[one] for (scorer, i), one in self._twin.items() if scorer == name and one in outcomes}
        return {**outcomes, **twins}


def _let_go(work: asyncio.Task[None], after_s: float) -> None:
    """Nobody waits for `work` any more: it ends by `after_s` from now."""
    if after_s > 0:
        asyncio.get_running_loop().call_later(after_s, work.cancel)
    else:
        work.cancel()


def _late(why: str) -> ScoreFailure:
    return ScoreFailure.of(DeadlineExceeded(f"{why}; raise 'timeout_ms' or retry"))
