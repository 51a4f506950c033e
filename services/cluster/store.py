"""One store for all gateways: a `MemoryStore` in a Ray actor (`StoreActor`), and `SharedStore`, its client.

Gateways send heartbeats. After MISSED_HEARTBEATS a gateway counts as dead and its claims are released. After
IDLE_SHUTDOWN_HEARTBEATS without any gateway the actor ends, seconds after its service. An actor that dies is restarted
empty. While the actor is unavailable, calls return at once: scores are computed but not kept, and requests that name
images by digest fail as Unavailable.
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
MISSED_HEARTBEATS: Final = 6  # after which a gateway counts as dead
IDLE_SHUTDOWN_HEARTBEATS: Final = 60  # without any gateway, after which the actor ends
CALL_TIMEOUT_S: Final = 5.0  # of a call, in addition to the wait that its caller asks for
HEARTBEAT_TIMEOUT_S: Final = 2.0  # an actor that does not answer a heartbeat in time is unavailable
OPEN_TIMEOUT_S: Final = 30.0
MAX_CONCURRENT_CALLS: Final = 10_000  # most of them wait for others' scores


class StoreActor:
    """The actor: the methods of `Store`, which record whose the claims are, and `heartbeat`. `end` ends its process."""

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
        """Count a missed heartbeat for every gateway, release the claims of dead ones, and return whether any remains.

        Missed heartbeats are counted, not timed, so a pause of the actor itself counts as one for each gateway.
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

    `open` starts the heartbeats, in the event loop that will use the store; until then the actor is unavailable.
    """

    def __init__(self, find: Callable[[], Any], *, keeps_scores: bool) -> None:
        self.keeps_scores = keeps_scores
        self._find = find
        self._gateway = uuid.uuid4().hex
        self._actor: Any = None
        self._unavailable: asyncio.Future[None] | None = None  # done while the actor is unavailable
        self._heartbeating: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start the heartbeats. Return when the actor answers, or after OPEN_TIMEOUT_S."""
        answered = asyncio.Event()
        self._heartbeating = asyncio.create_task(self._heartbeat(answered))
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await answered.wait()
        except TimeoutError:
            log.error("the shared store did not answer within %g s; serving without it", OPEN_TIMEOUT_S)

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
        """Claim `keys`. While the actor is unavailable, the caller owns all of them."""
        call = asyncio.ensure_future(self._call("claim", self._gateway, keys, lease_s))
        try:
            claims: list[Score | Claim] = await asyncio.shield(call)
        except Unavailable:
            return [Claim.OWNED] * len(keys)
        except asyncio.CancelledError:  # nobody will compute the scores that the answer claims for this caller
            call.add_done_callback(lambda done: self._release(keys, done))
            raise
        return claims

    async def settle(self, outcomes: Mapping[ScoreKey, Outcome | None]) -> None:
        """Settle claims. While the actor is unavailable, the outcomes are not kept."""
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
        """Call the actor. Raises its SynodError, and Unavailable without an answer in `within_s` + CALL_TIMEOUT_S."""
        unavailable = self._unavailable
        if unavailable is not None and not unavailable.done():
            try:
                answer = asyncio.ensure_future(getattr(self._actor, method).remote(*arguments))
                return await _answer_of(answer, unavailable, within_s + CALL_TIMEOUT_S)
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
                async with asyncio.timeout(HEARTBEAT_TIMEOUT_S if answered.is_set() else OPEN_TIMEOUT_S):
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
        self._actor = None  # the next heartbeat finds or starts another
        if self._unavailable is not None and not self._unavailable.done():
            log.error(
                "the shared store is unavailable (%s): no score is reused and no digest is known", type(error).__name__
            )
            self._unavailable.set_result(None)

    def _release(self, keys: Sequence[ScoreKey], claimed: asyncio.Future[Any]) -> None:
        if claimed.cancelled() or claimed.exception() is not None:
            return
        owned = [key for key, claim in zip(keys, claimed.result(), strict=True) if claim is Claim.OWNED]
        if owned:
            task = asyncio.ensure_future(self.settle(dict.fromkeys(owned)))
            _releases.add(task)
            task.add_done_callback(_releases.discard)


_releases: set[asyncio.Future[None]] = set()  # strong references: the event loop keeps only weak ones to its tasks


def shared_store(app: str, settings: StoreSettings) -> SharedStore:
    """Return the store that the gateways of application `app` share.

    Changed bounds start another actor, and the old one ends when it is idle.
    """
    size = (settings.max_image_bytes, settings.max_scores)
    options = {
        "name": f"store of {app} {size[0]} {size[1]}",
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",  # outlives the gateway that starts it
        "max_restarts": -1,
        "num_cpus": 0,
        "max_concurrency": MAX_CONCURRENT_CALLS,
    }
    return SharedStore(
        lambda: ray.remote(StoreActor).options(**options).remote(*size), keeps_scores=settings.max_scores > 0
    )


async def _answer_of(answer: asyncio.Future[Any], unavailable: asyncio.Future[None], within_s: float) -> Any:
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
