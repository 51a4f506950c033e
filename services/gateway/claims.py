"""Share scores between the items of a request and between requests: no score is computed twice at the same time.

A score is identified by the digests of the item's image, of its other inputs and of the scorer. Each score that a
request needs is cached, in flight in another request, or owned: this request has claimed it and must compute it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from services.gateway.keys import score_keys
from services.gateway.store import Claim, ScoreKey, Store
from services.observability import metrics
from synod.contracts import Origin, Outcome, Score, ScoreFailure, ScoreItem

Outcomes = dict[int, Outcome]  # by item index
_CACHE_RESULT: Final = {Claim.OWNED: "miss", Claim.IN_FLIGHT: "shared"}


class Claims:
    """The claims of one request on its scores. Each owned score must be settled, at the latest by `release`.

    `owned` and `in_flight` hold item indexes by scorer. An item equal to an earlier one is a duplicate: it is in
    neither, and `with_duplicates` copies the outcome of the earlier one. All items of a scorer without an origin are
    owned: its scores are never shared. In case this gateway dies, claims expire at `expire_s` (a `time.monotonic()`).
    """

    def __init__(
        self,
        store: Store,
        items: Sequence[ScoreItem],
        scorers_of: Sequence[Sequence[str]],
        origins: Mapping[str, Origin],
        expire_s: float,
    ) -> None:
        self._store, self._items, self._scorers_of = store, items, scorers_of
        self._origins, self._lease_ends_s = origins, expire_s
        self.owned: dict[str, list[int]] = {}
        self.in_flight: dict[str, list[int]] = {}
        self._duplicates: dict[str, dict[int, int]] = {}  # by scorer: index -> index of the earlier equal item
        self._keys: list[dict[str, ScoreKey]] = [{} for _ in items]
        self._unsettled: set[ScoreKey] = set()

    async def acquire(self) -> dict[str, Outcomes]:
        """Claim every score of the request and return the cached ones by scorer."""
        if self._store.keeps_scores:
            self._keys = await asyncio.to_thread(self._find_keys)
        first: dict[ScoreKey, tuple[str, int]] = {}
        for i, names in enumerate(self._scorers_of):
            for name in names:
                key = self._keys[i].get(name)
                if key is None:
                    self.owned.setdefault(name, []).append(i)
                elif key in first:
                    self._duplicates.setdefault(name, {})[i] = first[key][1]
                else:
                    first[key] = (name, i)
        cached: dict[str, Outcomes] = {}
        for (name, i), claim in zip(first.values(), await self._claim(list(first)), strict=True):
            if isinstance(claim, Score):
                cached.setdefault(name, {})[i] = claim
            else:
                (self.owned if claim is Claim.OWNED else self.in_flight).setdefault(name, []).append(i)
        return cached

    def unfinished_scorers(self) -> list[str]:
        """Return the scorers with scores that are owned or in flight."""
        return sorted({name for claimed in (self.owned, self.in_flight) for name, found in claimed.items() if found})

    def unfinished_items(self) -> list[int]:
        """Return the indexes of items with a score that is owned or in flight."""
        return sorted({i for indexes in (*self.owned.values(), *self.in_flight.values()) for i in indexes})

    async def claim_abandoned(self, name: str, indexes: Sequence[int]) -> tuple[Outcomes, list[int], list[int]]:
        """Claim scores that other requests gave up. Returns (cached outcomes, owned indexes, indexes in flight)."""
        claims = dict(zip(indexes, await self._claim([self._keys[i][name] for i in indexes]), strict=True))
        return (
            {i: claim for i, claim in claims.items() if isinstance(claim, Score)},
            [i for i, claim in claims.items() if claim is Claim.OWNED],
            [i for i, claim in claims.items() if claim is Claim.IN_FLIGHT],
        )

    async def wait(self, name: str, indexes: Sequence[int], timeout_s: float) -> Outcomes:
        """Wait for scores in flight. Those missing from the result were given up, or not known in time."""
        found = await self._store.wait([self._keys[i][name] for i in indexes], timeout_s)
        return {i: outcome for i, outcome in zip(indexes, found, strict=True) if outcome is not None}

    async def fail(self, failures: Mapping[int, ScoreFailure]) -> dict[str, Outcomes]:
        """Remove items that no scorer can score; return their failures by scorer and settle the owned ones."""
        await self.settle({name: _pick(failures, indexes) for name, indexes in self.owned.items()})
        dropped: dict[str, Outcomes] = {}
        for claimed in (self.owned, self.in_flight):
            for name, indexes in claimed.items():
                dropped.setdefault(name, {}).update(_pick(failures, indexes))
                claimed[name] = [i for i in indexes if i not in failures]
        return {name: outcomes for name, outcomes in dropped.items() if outcomes}

    def detach(self, name: str, indexes: Iterable[int]) -> bool:
        """Let owned scores outlive the request: the caller settles them. Return whether the store may keep one."""
        keys = {key for i in indexes if (key := self._keys[i].get(name))}
        self._unsettled -= keys
        return bool(keys)

    async def settle(self, outcomes: Mapping[str, Mapping[int, Outcome | None]]) -> None:
        """Settle owned scores, given by scorer: a score is kept, a failure is not, and None gives the claim up."""
        await self._settle(
            {
                key: outcome
                for name, found in outcomes.items()
                for i, outcome in found.items()
                if (key := self._keys[i].get(name))
            }
        )

    async def release(self) -> None:
        """Give up all claims that are not settled yet."""
        await self._settle(dict.fromkeys(self._unsettled))

    def with_duplicates(self, name: str, outcomes: Outcomes) -> Outcomes:
        """Add the outcomes of the duplicates of these items."""
        duplicates = self._duplicates.get(name, {})
        return outcomes | {i: outcomes[original] for i, original in duplicates.items() if original in outcomes}

    async def _claim(self, keys: list[ScoreKey]) -> list[Score | Claim]:
        if not keys:
            return []
        claims = await self._store.claim(keys, self._lease_ends_s - time.monotonic())
        for claim in claims:
            metrics.CACHE.labels(_CACHE_RESULT[claim] if isinstance(claim, Claim) else "hit").inc()
        self._unsettled.update(key for key, claim in zip(keys, claims, strict=True) if claim is Claim.OWNED)
        return claims

    async def _settle(self, outcomes: Mapping[ScoreKey, Outcome | None]) -> None:
        self._unsettled.difference_update(outcomes)
        if outcomes:
            await self._store.settle(outcomes)

    def _find_keys(self) -> list[dict[str, ScoreKey]]:
        return [
            score_keys(item, {name: self._origins[name] for name in names if name in self._origins})
            for item, names in zip(self._items, self._scorers_of, strict=True)
        ]


def _pick(failures: Mapping[int, ScoreFailure], indexes: Iterable[int]) -> Outcomes:
    return {i: failures[i] for i in indexes if i in failures}
