"""The store keeps images and scores within limits, and lets one request compute each score."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway import store as module
from services.gateway.keys import score_keys
from services.gateway.store import ENTRY_BYTES, Claim, MemoryStore, ScoreKey
from synod.contracts import (
    About,
    Concept,
    GenEvalClause,
    GenEvalMetadata,
    ImageRef,
    Origin,
    Reasoning,
    Score,
    ScoreFailure,
    ScoreItem,
)
from synod.digest import digest_of
from synod.errors import PayloadTooLarge

A, B, C = (ScoreKey(name, "", "") for name in "abc")
POISON = ScoreFailure("scorer_failed", "poison")
LOST = ScoreFailure("replica_lost", "gone", retryable=True)


def store(images: int = 3, scores: int = 2) -> MemoryStore:
    """Return the size of a store for this many images of 100 bytes."""
    return MemoryStore(images * (100 + ENTRY_BYTES), scores)


def image(level: int) -> bytes:
    return bytes([level]) * 100


async def test_stored_images_are_returned_unchanged() -> None:
    subject = store(1000)
    raw = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    digests = await subject.put([b"file", raw, raw[::-1]])
    assert digests == [digest_of(b"file"), digest_of(raw), digest_of(raw[::-1])]
    assert len(set(digests)) == 3
    file, same, flipped = await subject.get(digests)
    assert file == b"file"
    assert isinstance(same, np.ndarray)
    assert isinstance(flipped, np.ndarray)
    assert (same == raw).all()
    assert (flipped == raw[::-1]).all()
    assert await subject.get(["blake2b-256:00"]) == [None]


async def test_stored_image_does_not_keep_the_body_alive() -> None:
    body = bytearray(range(48))
    subject = store(1000)
    (digest,) = await subject.put([np.frombuffer(body, np.uint8, 24).reshape(2, 4, 3)])
    body[:] = bytes(48)
    (kept,) = await subject.get([digest])
    assert isinstance(kept, np.ndarray)
    assert kept.base is None
    assert digest_of(kept) == digest
    with pytest.raises(ValueError, match="read-only"):
        kept[0, 0, 0] = 1


async def test_least_recently_used_image_is_dropped_first() -> None:
    subject = store(3)
    digests = await subject.put([image(0), image(1), image(2)])
    await subject.get(digests[:1])
    await subject.put([image(1)])
    await subject.put([image(3)])
    assert [kept is not None for kept in await subject.get(digests)] == [True, True, False]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=12))
def test_store_keeps_the_newest_within_its_limit(puts: list[list[int]]) -> None:
    async def scenario() -> None:
        subject = store(3)
        for levels in puts:
            digests = await subject.put([image(level) for level in levels])
            assert None not in await subject.get(digests)
            assert subject.bytes <= 3 * (100 + ENTRY_BYTES)
            assert subject.bytes == len(subject._images) * (100 + ENTRY_BYTES)

    asyncio.run(scenario())


async def test_oversized_upload_is_refused_and_drops_no_image() -> None:
    subject = store(3)
    digests = await subject.put([image(0)])
    with pytest.raises(PayloadTooLarge, match="max_image_bytes"):
        await subject.put([image(level) for level in range(4)])
    assert await subject.get(digests) == [image(0)]


async def test_a_long_detail_counts_as_several_scores() -> None:
    subject = store(scores=4)
    long = Score(0.5, {"objects": [{"box": [0.0] * 9, "class": "cat"}] * 10})  # 1 + 10 * (2 + 9 + 1) values: twice 64
    await subject.settle({A: Score(0.1), B: Score(0.2)})
    await subject.settle({C: long})
    assert await subject.claim([A, B, C], 10) == [Score(0.1), Score(0.2), long]
    await subject.settle({B: Score(0.3)})  # in place of the former one: still 4
    assert await subject.claim([A, B, C], 10) == [Score(0.1), Score(0.3), long]
    await subject.settle({A: long})
    assert await subject.claim([B, C, A], 10) == [Claim.OWNED, long, long]


async def test_score_is_computed_once() -> None:
    subject = store()
    assert await subject.claim([A, A, B], 10) == [Claim.OWNED, Claim.IN_FLIGHT, Claim.OWNED]
    waiting = asyncio.create_task(subject.wait([A, B], 10))
    await asyncio.sleep(0)
    await subject.settle({A: Score(0.5)})
    assert not waiting.done()
    await subject.settle({B: Score(0.25)})
    assert await waiting == [Score(0.5), Score(0.25)]
    assert await subject.claim([A, B], 10) == [Score(0.5), Score(0.25)]
    assert await subject.wait([A], 10) == [Score(0.5)]


async def test_only_final_failures_reach_waiting_requests() -> None:
    subject = store()
    await subject.claim([A, B, C], 10)
    waiting = asyncio.create_task(subject.wait([A, B, C], 10))
    await asyncio.sleep(0)
    await subject.settle({A: POISON, B: LOST, C: None})
    assert await waiting == [POISON, None, None]
    assert await subject.claim([A, B, C], 10) == [Claim.OWNED] * 3


@pytest.mark.parametrize("outcome", [LOST, None])
async def test_abandoned_score_is_free_while_others_are_computed(outcome: ScoreFailure | None) -> None:
    subject = store()
    await subject.claim([A, B, C], 3600)
    waiting = asyncio.create_task(subject.wait([A, B, C], 3600))
    await asyncio.sleep(0)
    await subject.settle({B: Score(0.5)})
    await subject.settle({A: outcome})
    async with asyncio.timeout(20):
        assert await waiting == [None, Score(0.5), None]
    assert await subject.claim([A, C], 3600) == [Claim.OWNED, Claim.IN_FLIGHT]


async def test_expired_score_is_free_while_others_are_computed() -> None:
    subject = store()
    await subject.claim([A], 3600)
    await subject.claim([B], 0.01)
    async with asyncio.timeout(20):
        assert await subject.wait([A, B], 3600) == [None, None]
    assert await subject.claim([A, B], 3600) == [Claim.IN_FLIGHT, Claim.OWNED]


async def test_expired_claim_is_free_again() -> None:
    subject = store()
    await subject.claim([A], 0.01)
    assert await subject.wait([A], 60) == [None]
    assert await subject.claim([A], 10) == [Claim.OWNED]
    assert await subject.claim([A], 10) == [Claim.IN_FLIGHT]


async def test_wait_times_out_and_keeps_the_claim() -> None:
    subject = store()
    await subject.claim([A], 60)
    assert await subject.wait([A], 0.01) == [None]
    assert await subject.claim([A], 60) == [Claim.IN_FLIGHT]


async def test_cancelled_wait_does_not_affect_others() -> None:
    subject = store()
    await subject.claim([A], 60)
    gone, stays = (asyncio.create_task(subject.wait([A], 60)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    await subject.settle({A: Score(1.0)})
    assert await stays == [Score(1.0)]


async def test_least_recently_used_score_is_dropped_first() -> None:
    subject = store(scores=2)
    await subject.settle({A: Score(0.0), B: Score(1.0)})
    await subject.claim([A], 10)
    await subject.settle({C: Score(2.0)})
    assert await subject.claim([A, C, B], 10) == [Score(0.0), Score(2.0), Claim.OWNED]


async def test_abandoned_claims_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_LEASES", 4)
    subject = store()
    for n in range(50):
        await subject.claim([ScoreKey(str(n), "", "")], 0.0)
    assert len(subject._leases) <= 6


ONE = Origin("m1", "p1")
FULL = ScoreItem(
    b"image",
    "prompt",
    (b"one", b"two"),
    Reasoning("text", ("a", "b"), (1.0, 0.0)),
    GenEvalMetadata("tag", (GenEvalClause("cat", 1),)),
    Concept("person", "woman", "<ann>"),
    "before",
)


@pytest.mark.parametrize(
    "other",
    [
        replace(FULL, image=b"other"),
        replace(FULL, image=None),
        replace(FULL, prompt="other"),
        replace(FULL, prompt=None),
        replace(FULL, references=(b"two", b"one")),
        replace(FULL, references=(b"one",)),
        replace(FULL, reasoning=Reasoning("text", ("a", "b"), (0.0, 1.0))),
        replace(FULL, geneval=GenEvalMetadata("tag", (GenEvalClause("cat", 2),))),
        replace(FULL, concept=Concept("person", "woman")),
        replace(FULL, concept=Concept("person", "woman", "<ann>", About("tall"))),
        replace(FULL, source_prompt="other"),
        replace(FULL, source_prompt=None),
        replace(FULL, prompt="before", source_prompt="prompt"),
    ],
)
def test_every_input_changes_the_key(other: ScoreItem) -> None:
    assert score_keys(other, {"s": ONE}) != score_keys(FULL, {"s": ONE})


def test_key_depends_on_item_scorer_and_origin() -> None:
    origins = {"s": ONE, "t": ONE}
    keys = score_keys(FULL, origins)
    assert keys == score_keys(replace(FULL), origins)
    assert keys["s"] != keys["t"]
    assert score_keys(FULL, {"s": replace(ONE, model="m2")})["s"] != keys["s"]
    assert score_keys(FULL, {}) == {}


def test_digest_and_image_have_equal_keys() -> None:
    by_digest = replace(
        FULL,
        image=ImageRef(digest_of(b"image")),  # type: ignore[arg-type]
        references=(ImageRef(digest_of(b"one")), b"two"),  # type: ignore[arg-type]
    )
    assert score_keys(by_digest, {"s": ONE}) == score_keys(FULL, {"s": ONE})
