"""One store for all gateways: a `MemoryStore` in a Ray actor (`StoreActor`), and `SharedStore`, its client.

Gateways send heartbeats. A gateway that misses MISSED_HEARTBEATS is taken for dead and its claims are released; an
actor without any gateway for IDLE_SHUTDOWN_HEARTBEATS ends, and so outlives its service by seconds. An actor that dies
is restarted empty. While it is unavailable every call returns at once: scores are computed but not kept, and images by
digest are Unavailable.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import ray
from ray.exceptions import RayError, RayTaskError

from services.gateway.store import Claim, MemoryStore, ScoreKey
from services.observability import metrics
from services.settings import StoreSettings
from synod.contracts import ImageData, Outcome, Score
from synod.errors import SynodError, Unavailable

log = logging.getLogger("synod.gateway")
NAMESPACE: Final = "synod"
HEARTBEAT_S: Final = 0.5
MISSED_HEARTBEATS: Final = 6  # after which a gateway is taken for dead
IDLE_SHUTDOWN_HEARTBEATS: Final = 60  # without any gateway, after which the actor ends
CALL_S: Final = 5.0  # longest duration of a call, besides the wait that its caller asks for
ANSWER_S: Final = 2.0  # to a heartbeat; an actor that is slower is unavailable
OPEN_S: Final = 30.0
MAX_CONCURRENT_CALLS: Final = 10_000  # most of them wait for others' scores


class StoreActor:
    """The store's actor: the methods of `Store`, with claims by gateway, and `heartbeat`. `end` ends the process."""

    def __init__(self, max_bytes: int, max_scores: int, end: Callable[[], None] | None = None) -> None:
        self._store = MemoryStore(max_bytes, max_scores)
        self._end = end or _end_this_actor
        self._missed: dict[str, int] = {}
        self._claimed: dict[ScoreKey, str] = {}
        self._watching: asyncio.Task[None] | None = None

    async def heartbeat(self, gateway: str) -> None:
        """Record that `gateway` is alive."""
        self._missed[gateway] = 0
        self._watching = self._watching or asyncio.create_task(self._watch())

    async def put(self, images: Sequence[ImageData]) -> list[str]:
        return await self._store.put(images)

    async def get(self, digests: Sequence[str]) -> list[ImageData | None]:
        return await self._store.get(digests)

    async def claim(self, gateway: str, keys: Sequence[ScoreKey], lease_s: float) -> list[Score | Claim]:
        claims = await self._store.claim(keys, lease_s)
        self._claimed.update({key: gateway for key, claim in zip(keys, claims, strict=True) if claim is Claim.OWNED})
        return claims

    async def settle(self, outcomes: Mapping[ScoreKey, Outcome | None]) -> None:
        for key in outcomes:
            self._claimed.pop(key, None)
        await self._store.settle(outcomes)

    async def wait(self, keys: Sequence[ScoreKey], timeout_s: float) -> list[Outcome | None]:
        return await self._store.wait(keys, timeout_s)

    async def tick(self) -> bool:
        """Count a missed heartbeat for every gateway, release the claims of dead ones, and return whether any is left.

        Heartbeats are counted, not timed: after a pause of the actor itself, each gateway has missed one.
        """
        for gateway, missed in list(self._missed.items()):
            self._missed[gateway] = missed + 1
            if missed + 1 == MISSED_HEARTBEATS:
                await self.settle({key: None for key, owner in self._claimed.items() if owner == gateway})
            if missed + 1 >= IDLE_SHUTDOWN_HEARTBEATS:
                del self._missed[gateway]
        return bool(self._missed)

    async def _watch(self) -> None:
        while await self.tick():
            await asyncio.sleep(HEARTBEAT_S)
        self._end()


class SharedStore:
    """The `Store` of one of several gateways. `find` returns the actor's handle and starts an actor if there is none.

    `open` starts the heartbeats, in the event loop that is to use the store; before it the actor is unavailable.
    """

    def __init__(self, find: Callable[[], Any], *, keeps_scores: bool) -> None:
        self.keeps_scores = keeps_scores
        self._find = find
        self._gateway = uuid.uuid4().hex
        self._actor: Any = None
        self._unavailable: asyncio.Future[None] | None = None  # done while the actor is unavailable
        self._heartbeating: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start the heartbeats; return when the actor answers, or after OPEN_S without an answer."""
        answered = asyncio.Event()
        self._heartbeating = asyncio.create_task(self._heartbeat(answered))
        try:
            async with asyncio.timeout(OPEN_S):
                await answered.wait()
        except TimeoutError:
            log.error("the shared store did not answer within %g s; serving without it", OPEN_S)

    async def close(self) -> None:
        """Stop the heartbeats."""
        if self._heartbeating is not None:
            self._heartbeating.cancel()
            await asyncio.wait([self._heartbeating])

    async def put(self, images: Sequence[ImageData]) -> list[str]:
        digests: list[str] = await self._call("put", images)
        return digests

    async def get(self, digests: Sequence[str]) -> list[ImageData | None]:
        images: list[ImageData | None] = await self._call("get", digests)
        return images

    async def claim(self, keys: Sequence[ScoreKey], lease_s: float) -> list[Score | Claim]:
        """Claim `keys`; while the actor is unavailable every one is OWNED."""
        call = asyncio.ensure_future(self._call("claim", self._gateway, keys, lease_s))
        try:
            claims: list[Score | Claim] = await asyncio.shield(call)
        except Unavailable:
            return [Claim.OWNED] * len(keys)
        except asyncio.CancelledError:  # the answer still comes, and nobody will compute what it claims
            call.add_done_callback(lambda done: self._release(keys, done))
            raise
        return claims

    async def settle(self, outcomes: Mapping[ScoreKey, Outcome | None]) -> None:
        """Settle claims; while the actor is unavailable nothing is kept."""
        try:
            await self._call("settle", outcomes)
        except Unavailable:
            return

    async def wait(self, keys: Sequence[ScoreKey], timeout_s: float) -> list[Outcome | None]:
        try:
            found: list[Outcome | None] = await self._call("wait", keys, timeout_s, within_s=max(0.0, timeout_s))
        except Unavailable:
            return [None] * len(keys)
        return found

    async def _call(self, method: str, *arguments: object, within_s: float = 0.0) -> Any:
        """Return the actor's answer. Raises its SynodError, and Unavailable without an answer `within_s` + CALL_S."""
        unavailable = self._unavailable
        if unavailable is not None and not unavailable.done():
            try:
                answer = asyncio.ensure_future(getattr(self._actor, method).remote(*arguments))
                return await _first(answer, unavailable, within_s + CALL_S)
            except RayTaskError as error:
                if isinstance(error.cause, SynodError):
                    raise error.cause from None
                log.exception("the shared store failed to %s", method)
            except (RayError, TimeoutError):  # the next heartbeat decides whether the actor is unavailable
                log.warning("the shared store did not answer '%s'", method)
        metrics.STORE_FAILURES.labels(method).inc()
        raise Unavailable("the service's shared store is unavailable; retry", retry_after_s=1.0)

    async def _heartbeat(self, answered: asyncio.Event) -> None:
        while True:
            try:
                if self._actor is None:
                    self._actor = await asyncio.to_thread(self._find)
                async with asyncio.timeout(ANSWER_S if answered.is_set() else OPEN_S):
                    await self._actor.heartbeat.remote(self._gateway)
                self._mark_available()
                answered.set()
            except (RayError, TimeoutError, ValueError) as error:  # ValueError: the name was just taken or released
                self._mark_unavailable(error)
            await asyncio.sleep(HEARTBEAT_S)

    def _mark_available(self) -> None:
        if self._unavailable is None or self._unavailable.done():
            log.warning("the shared store is available")
            self._unavailable = asyncio.get_running_loop().create_future()

    def _mark_unavailable(self, error: Exception) -> None:
        self._actor = None  # it may have ended for good, and another be started
        if self._unavailable is not None and not self._unavailable.done():
            log.error(
                "the shared store is unavailable (%s): no score is reused and no digest is known", type(error).__name__
            )
            self._unavailable.set_result(None)

    def _release(self, keys: Sequence[ScoreKey], claimed: asyncio.Future[Any]) -> None:
        if claimed.cancelled() or claimed.exception() is not None:
            return
        mine = [key for key, claim in zip(keys, claimed.result(), strict=True) if claim is Claim.OWNED]
        if mine:
            task = asyncio.ensure_future(self.settle(dict.fromkeys(mine)))
            _releases.add(task)
            task.add_done_callback(_releases.discard)


_releases: set[asyncio.Future[None]] = set()  # the event loop holds its tasks weakly


def shared(app: str, settings: StoreSettings) -> SharedStore:
    """Return the store of the gateways of application `app`. Other bounds start another actor, and the old one ends."""
    size = (settings.max_image_bytes, settings.max_scores)
    options = {
        "name": f"store of {app} {size[0]} {size[1]}",
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",  # from the gateway that happened to start it
        "max_restarts": -1,
        "num_cpus": 0,
        "max_concurrency": MAX_CONCURRENT_CALLS,
    }
    return SharedStore(
        lambda: ray.remote(StoreActor).options(**options).remote(*size), keeps_scores=settings.max_scores > 0
    )


async def _first(answer: asyncio.Future[Any], unavailable: asyncio.Future[None], within_s: float) -> Any:
    """Return the answer. Raises TimeoutError after `within_s`, or as soon as the actor is unavailable."""
    try:
        waited: set[Awaitable[Any]] = {answer, unavailable}
        await asyncio.wait(waited, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var]
        if not answer.done():
            raise TimeoutError
        return answer.result()
    finally:
        answer.cancel()


def _end_this_actor() -> None:
    ray.kill(ray.get_runtime_context().current_actor)
