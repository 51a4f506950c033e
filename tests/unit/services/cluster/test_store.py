"""The gateways' shared store without Ray: whose claims end when, and what is answered while the keeper is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from services.cluster import store as module
from services.cluster.store import LONELY_BEATS, MISSED_BEATS, Keeper, SharedStore
from services.gateway.store import Claim, ScoreKey
from synod.contracts import Score
from synod.digest import digest_of
from synod.errors import PayloadTooLarge, Unavailable

A, B, C = (ScoreKey(name, "", "") for name in "abc")


class Handle:
    """An actor handle whose calls arrive after `hold`, and whose actor may be dead."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
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
            return await getattr(self.keeper, name)(*arguments)
        except PayloadTooLarge as error:
            raise RayTaskError(name, "trace", error) from None


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats follow each other closely; patience with an answer is as long as ever, unless a test says otherwise."""
    monkeypatch.setattr(module, "BEAT_S", 0.001)
    monkeypatch.setattr(Keeper, "_watch", nobody_ticks)


async def nobody_ticks(self: Keeper) -> None: ...


@pytest.fixture
async def handle() -> Handle:
    return Handle(Keeper(2000, 100, end=lambda: None))


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


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def test_what_one_gateway_puts_or_settles_another_finds(opened: Open) -> None:
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


async def test_a_refusal_of_the_store_is_the_callers(opened: Open) -> None:
    one = await opened()
    with pytest.raises(PayloadTooLarge, match="max_image_bytes"):
        await one.put([bytes(5000)])
    assert await one.claim([A], 60) == [Claim.OWNED]


async def test_a_dead_gateways_claims_are_anyones_and_a_living_ones_are_not(handle: Handle) -> None:
    keeper = handle.keeper
    await keeper.beat("dead")
    await keeper.beat("living")
    assert await keeper.claim("dead", [A, B], 600) == [Claim.OWNED, Claim.OWNED]
    assert await keeper.claim("living", [C], 600) == [Claim.OWNED]
    await keeper.settle({B: Score(1.0)})
    waiting = asyncio.create_task(keeper.wait([A], 600))
    for _ in range(MISSED_BEATS - 1):
        await keeper.tick()
        await keeper.beat("living")
    assert not waiting.done()
    await keeper.tick()
    assert await waiting == [None]
    assert await keeper.claim("living", [A, B, C], 600) == [Claim.OWNED, Score(1.0), Claim.IN_FLIGHT]


async def test_a_late_death_does_not_give_up_what_another_has_claimed_since(handle: Handle) -> None:
    keeper = handle.keeper
    await keeper.beat("dead")
    await keeper.claim("dead", [A], 0.0)
    assert await keeper.claim("living", [A], 600) == [Claim.OWNED]
    for _ in range(MISSED_BEATS):
        await keeper.tick()
    assert await keeper.claim("third", [A], 600) == [Claim.IN_FLIGHT]


async def test_a_keeper_without_gateways_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(module, "BEAT_S", 0.0)
    ended = asyncio.Event()
    await Keeper(1000, 10, ended.set).beat("gone")
    async with asyncio.timeout(20):
        await ended.wait()


async def test_a_keeper_with_a_gateway_does_not_end(handle: Handle) -> None:
    for _ in range(2 * LONELY_BEATS):
        await handle.keeper.beat("living")
        assert await handle.keeper.tick()


@pytest.mark.parametrize("death", [ActorDiedError(), ActorUnavailableError("restarting", None)])
async def test_without_its_keeper_a_gateway_measures_and_knows_no_digest(
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
    await until(lambda: "is away" in caplog.text)
    before = handle.calls.count("claim")
    assert await one.claim([A], 60) == [Claim.OWNED]
    assert handle.calls.count("claim") == before  # nobody asks a keeper that is known to be away
    handle.dead = None
    await until(lambda: caplog.text.count("is here") == 2)
    assert await one.claim([A], 60) == [Score(0.5)]


async def test_its_failures_are_counted(opened: Open, handle: Handle) -> None:
    def counted() -> float:
        return module.metrics.REGISTRY.get_sample_value("synod_store_failures_total", {"call": "claim"}) or 0.0

    one, before = await opened(), counted()
    handle.dead = ActorDiedError()
    await one.claim([A], 60)
    assert counted() == before + 1


async def test_a_keeper_that_hangs_releases_every_call(
    opened: Open, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beat is not answered: what waits for it, however long it would, ends then."""
    one = await opened()
    monkeypatch.setattr(module, "ANSWER_S", 0.01)
    monkeypatch.setattr(module, "CALL_S", 3600.0)
    handle.hold.clear()
    async with asyncio.timeout(20):
        claims, found, put = await asyncio.gather(
            one.claim([A], 60), one.wait([A], 3600.0), one.put([b"x"]), return_exceptions=True
        )
    assert claims == [Claim.OWNED]
    assert found == [None]
    assert isinstance(put, Unavailable)


async def test_a_call_that_hangs_alone_ends_too(opened: Open, handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    one = await opened()
    monkeypatch.setattr(module, "CALL_S", 0.01)
    monkeypatch.setattr(module, "BEAT_S", 3600.0)
    handle.hold.clear()
    async with asyncio.timeout(20):
        assert await one.claim([A], 60) == [Claim.OWNED]


async def test_a_caller_that_leaves_while_it_claims_holds_nothing(opened: Open, handle: Handle) -> None:
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


async def test_a_keeper_that_never_came_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_S", 0.01)

    def find() -> Any:
        raise ActorDiedError

    one = SharedStore(find, keeps_scores=True)
    await one.open()
    try:
        assert await one.claim([A], 60) == [Claim.OWNED]
    finally:
        await one.close()
