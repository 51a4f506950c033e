"""The gateways' shared store without Ray: when claims end, and what callers get while the actor is unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from services.cluster import store as module
from services.cluster.store import IDLE_SHUTDOWN_HEARTBEATS, MISSED_HEARTBEATS, SharedStore, StoreActor
from services.gateway.store import Claim, ScoreKey
from synod.contracts import Score
from synod.digest import digest_of
from synod.errors import PayloadTooLarge, Unavailable
from tests.outcomes import until

A, B, C = (ScoreKey(name, "", "") for name in "abc")


class Handle:
    """An actor handle whose calls arrive after `hold`, and whose actor may be dead."""

    def __init__(self, actor: StoreActor) -> None:
        self.actor = actor
        self.dead: Exception | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        class Method:
            @staticmethod
            def remote(*arguments: object) -> Awaitable[object]:
                return self.call(name, arguments)

        return Method

    async def call(self, name: str, arguments: tuple[object, ...]) -> object:
        self.calls.append(name)
        if self.dead is not None:
            raise self.dead
        await self.hold.wait()
        try:
            return await getattr(self.actor, name)(*arguments)
        except PayloadTooLarge as error:
            raise RayTaskError(name, "trace", error) from None


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send heartbeats quickly; keep the timeouts of answers."""
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.001)
    monkeypatch.setattr(StoreActor, "_watch", no_ticks)


async def no_ticks(self: StoreActor) -> None: ...


@pytest.fixture
async def handle() -> Handle:
    return Handle(StoreActor(2000, 100, end=lambda: None))


@pytest.fixture
async def opened(handle: Handle) -> AsyncIterator[Callable[[], Awaitable[SharedStore]]]:
    """Open the store of one more gateway."""
    stores = []

    async def open_one() -> SharedStore:
        stores.append(SharedStore(lambda: handle, keeps_scores=True))
        await stores[-1].open()
        return stores[-1]

    yield open_one
    for one in stores:
        await one.close()


Open = Callable[[], Awaitable[SharedStore]]


async def test_gateways_share_images_and_scores(opened: Open) -> None:
    one, other = await opened(), await opened()
    digests = await one.put([b"image"])
    assert digests == [digest_of(b"image")]
    assert await other.get(digests) == [b"image"]
    assert await one.claim([A], 60) == [Claim.OWNED]
    assert await other.claim([A, B], 60) == [Claim.IN_FLIGHT, Claim.OWNED]
    waiting = asyncio.create_task(other.wait([A], 60))
    await one.settle({A: Score(0.5)})
    assert await waiting == [Score(0.5)]
    assert await other.claim([A], 60) == [Score(0.5)]


async def test_a_refusal_reaches_the_caller(opened: Open) -> None:
    one = await opened()
    with pytest.raises(PayloadTooLarge, match="max_image_bytes"):
        await one.put([bytes(5000)])
    assert await one.claim([A], 60) == [Claim.OWNED]


async def test_only_a_dead_gateways_claims_are_released(handle: Handle) -> None:
    actor = handle.actor
    await actor.heartbeat("dead")
    await actor.heartbeat("living")
    assert await actor.claim("dead", [A, B], 600) == [Claim.OWNED, Claim.OWNED]
    assert await actor.claim("living", [C], 600) == [Claim.OWNED]
    await actor.settle({B: Score(1.0)})
    waiting = asyncio.create_task(actor.wait([A], 600))
    for _ in range(MISSED_HEARTBEATS - 1):
        await actor.tick()
        await actor.heartbeat("living")
    assert not waiting.done()
    await actor.tick()
    assert await waiting == [None]
    assert await actor.claim("living", [A, B, C], 600) == [Claim.OWNED, Score(1.0), Claim.IN_FLIGHT]


async def test_a_late_death_keeps_newer_claims(handle: Handle) -> None:
    actor = handle.actor
    await actor.heartbeat("dead")
    await actor.claim("dead", [A], 0.0)
    assert await actor.claim("living", [A], 600) == [Claim.OWNED]
    for _ in range(MISSED_HEARTBEATS):
        await actor.tick()
    assert await actor.claim("third", [A], 600) == [Claim.IN_FLIGHT]


async def test_an_actor_without_gateways_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.0)
    ended = asyncio.Event()
    await StoreActor(1000, 10, ended.set).heartbeat("gone")
    async with asyncio.timeout(20):
        await ended.wait()


async def test_an_actor_with_a_gateway_does_not_end(handle: Handle) -> None:
    for _ in range(2 * IDLE_SHUTDOWN_HEARTBEATS):
        await handle.actor.heartbeat("living")
        assert await handle.actor.tick()


@pytest.mark.parametrize("death", [ActorDiedError(), ActorUnavailableError("restarting", None)])
async def test_a_gateway_serves_without_its_store_actor(
    opened: Open, handle: Handle, death: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    one = await opened()
    await one.settle({A: Score(0.5)})
    handle.dead = death
    assert await one.claim([A, B], 60) == [Claim.OWNED, Claim.OWNED]
    assert await one.wait([A], 60) == [None]
    await one.settle({A: Score(0.25)})
    for call in (one.put([b"x"]), one.get(["blake2b-256:00"])):
        with pytest.raises(Unavailable) as refused:
            await call
        assert refused.value.retryable
    await until(lambda: "is unavailable" in caplog.text)
    before = handle.calls.count("claim")
    assert await one.claim([A], 60) == [Claim.OWNED]
    assert handle.calls.count("claim") == before  # no call goes to an unavailable actor
    handle.dead = None
    await until(lambda: caplog.text.count("is available") == 2)
    assert await one.claim([A], 60) == [Score(0.5)]


async def test_failed_calls_are_counted(opened: Open, handle: Handle) -> None:
    def counted() -> float:
        return module.metrics.REGISTRY.get_sample_value("synod_store_failures_total", {"call": "claim"}) or 0.0

    one, before = await opened(), counted()
    handle.dead = ActorDiedError()
    await one.claim([A], 60)
    assert counted() == before + 1


async def test_a_hanging_actor_releases_every_call(
    opened: Open, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call ends when a heartbeat is not answered in time."""
    one = await opened()
    monkeypatch.setattr(module, "HEARTBEAT_TIMEOUT_S", 0.01)
    monkeypatch.setattr(module, "CALL_TIMEOUT_S", 3600.0)
    handle.hold.clear()
    async with asyncio.timeout(20):
        claims, found, put = await asyncio.gather(
            one.claim([A], 60), one.wait([A], 3600.0), one.put([b"x"]), return_exceptions=True
        )
    assert claims == [Claim.OWNED]
    assert found == [None]
    assert isinstance(put, Unavailable)


async def test_a_single_hanging_call_ends(opened: Open, handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    one = await opened()
    monkeypatch.setattr(module, "CALL_TIMEOUT_S", 0.01)
    monkeypatch.setattr(module, "HEARTBEAT_S", 3600.0)
    handle.hold.clear()
    async with asyncio.timeout(20):
        assert await one.claim([A], 60) == [Claim.OWNED]


async def test_a_cancelled_claim_is_released(opened: Open, handle: Handle) -> None:
    one, other = await opened(), await opened()
    handle.hold.clear()
    before = len(handle.calls)
    leaving = asyncio.create_task(one.claim([A], 600))
    await until(lambda: "claim" in handle.calls[before:])
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    handle.hold.set()
    await until(lambda: "settle" in handle.calls)
    assert await other.claim([A], 60) == [Claim.OWNED]


async def test_an_actor_that_never_answers_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_TIMEOUT_S", 0.01)

    def find() -> Any:
        raise ActorDiedError

    one = SharedStore(find, keeps_scores=True)
    await one.open()
    try:
        assert await one.claim([A], 60) == [Claim.OWNED]
    finally:
        await one.close()
