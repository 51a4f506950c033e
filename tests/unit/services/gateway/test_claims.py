"""Each score that a request needs is cached, in flight elsewhere, owned or a duplicate, and every claim is settled."""

from __future__ import annotations

import numpy as np

from services.gateway.claims import Claims
from services.gateway.store import MemoryStore
from synod.contracts import Origin, Score, ScoreFailure, ScoreItem

ORIGINS = {name: Origin("m", name) for name in "ab"}
FAILED = ScoreFailure("scorer_failed", "it failed")


def item(level: int) -> ScoreItem:
    return ScoreItem(np.full((2, 2, 3), level, np.uint8))


def claims_on(store: MemoryStore, *levels: int, scorers: str = "a", lease_s: float = 1e9) -> Claims:
    return Claims(store, [item(level) for level in levels], [tuple(scorers)] * len(levels), ORIGINS, lease_s)


async def test_scores_are_sorted_by_who_computes_them() -> None:
    store = MemoryStore(2**20, 100)
    first = claims_on(store, 1, 2)
    assert await first.acquire() == {}
    assert (first.owned, first.in_flight) == ({"a": [0, 1]}, {})
    await first.settle({"a": {0: Score(0.5)}})
    second = claims_on(store, 3, 2, 1, 3, scorers="ab")
    assert await second.acquire() == {"a": {2: Score(0.5)}}
    assert second.owned == {"a": [0], "b": [0, 1, 2]}
    assert second.in_flight == {"a": [1]}
    assert second.with_duplicates("a", {0: Score(0.1)}) == {0: Score(0.1), 3: Score(0.1)}


async def test_scorer_without_origin_owns_all_items() -> None:
    claims = Claims(MemoryStore(2**20, 100), [item(1), item(1)], [("c",), ("c",)], ORIGINS, 1e9)
    assert await claims.acquire() == {}
    assert claims.owned == {"c": [0, 1]}
    assert not claims.detach("c", [0, 1])


async def test_waiting_request_gets_the_settled_score() -> None:
    store = MemoryStore(2**20, 100)
    owner, other = claims_on(store, 1, 2), claims_on(store, 1, 2)
    await owner.acquire()
    await other.acquire()
    await owner.settle({"a": {0: Score(0.5), 1: None}})
    assert await other.wait("a", [0, 1], 1.0) == {0: Score(0.5)}
    assert await other.claim_abandoned("a", [1]) == ({}, [1], [])


async def test_release_gives_up_all_but_what_was_handed_over() -> None:
    store = MemoryStore(2**20, 100)
    owner = claims_on(store, 1, 2)
    await owner.acquire()
    assert owner.detach("a", [0])
    await owner.release()
    other = claims_on(store, 1, 2)
    await other.acquire()
    assert (other.owned, other.in_flight) == ({"a": [1]}, {"a": [0]})


async def test_dropped_items_fail_in_every_scorer() -> None:
    store = MemoryStore(2**20, 100)
    owner, other = claims_on(store, 1), claims_on(store, 1, 2, scorers="ab")
    await owner.acquire()
    await other.acquire()
    assert await other.fail({0: FAILED}) == {"a": {0: FAILED}, "b": {0: FAILED}}
    assert (other.owned, other.in_flight) == ({"b": [1], "a": [1]}, {"a": []})
    again = claims_on(store, 1, scorers="b")
    await again.acquire()
    assert again.owned == {"b": [0]}
