"""One store for all gateways: a `MemoryStore` in a Ray actor of its own (`Keeper`), and the `SharedStore` that asks it.

Gateways beat. One that beats no more has died, and what it had claimed is anyone's; a keeper that no gateway beats for
any more ends, so that it outlives its service by seconds. A keeper that dies is started again, empty. While it is away,
every call returns at once: scores are measured and not kept, images by digest are Unavailable.
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
BEAT_S: Final = 0.5
MISSED_BEATS: Final = 6  # of a gateway that has died
LONELY_BEATS: Final = 60  # without any gateway, and the keeper ends
CALL_S: Final = 5.0  # the longest that a call may take, besides what it is told to wait
ANSWER_S: Final = 2.0  # to a beat; a keeper that is slower is away
OPEN_S: Final = 30.0
CALLS_AT_ONCE: Final = 10_000  # most of them wait for others' scores


class Keeper:
    """The actor. Every method but `beat` is the store's; a claim is in the name of a gateway. `end` ends the actor."""

    def __init__(self, max_bytes: int, max_scores: int, end: Callable[[], None] | None = None) -> None:
        self._store = MemoryStore(max_bytes, max_scores)
        self._end = end or _end_this_actor
        self._missed: dict[str, int] = {}
        self._claimed: dict[ScoreKey, str] = {}
        self._watching: asyncio.Task[None] | None = None

    async def beat(self, gateway: str) -> None:
        """This gateway lives."""
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
        """One more beat's time has passed: the dead give up what they claimed. False when nobody has lived for long.

        Missed beats are counted, not timed: a keeper that was itself held up counts one.
        """
        for gateway, missed in list(self._missed.items()):
            self._missed[gateway] = missed + 1
            if missed + 1 == MISSED_BEATS:
                await self.settle({key: None for key, owner in self._claimed.items() if owner == gateway})
            if missed + 1 >= LONELY_BEATS:
                del self._missed[gateway]
        return bool(self._missed)

    async def _watch(self) -> None:
        while await self.tick():
            await asyncio.sleep(BEAT_S)
        self._end()


class SharedStore:
    """The `Store` of a gateway among several. `find` gives the keeper's handle, starting one if there is none.

    `open` begins to beat, in the event loop that is to use it; without it the keeper is away.
    """

    def __init__(self, find: Callable[[], Any], *, keeps_scores: bool) -> None:
        self.keeps_scores = keeps_scores
        self._find = find
        self._gateway = uuid.uuid4().hex
        self._keeper: Any = None
        self._away: asyncio.Future[None] | None = None  # done while the keeper is away
        self._beating: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Returns when the keeper answers, or after OPEN_S without it."""
        answered = asyncio.Event()
        self._beating = asyncio.create_task(self._beat(answered))
        try:
            async with asyncio.timeout(OPEN_S):
                await answered.wait()
        except TimeoutError:
            log.error("the shared store did not answer within %g s; serving without it", OPEN_S)

    async def close(self) -> None:
        """Beat no more."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])

    async def put(self, images: Sequence[ImageData]) -> list[str]:
        digests: list[str] = await self._call("put", images)
        return digests

    async def get(self, digests: Sequence[str]) -> list[ImageData | None]:
        images: list[ImageData | None] = await self._call("get", digests)
        return images

    async def claim(self, keys: Sequence[ScoreKey], lease_s: float) -> list[Score | Claim]:
        """Everything is OWNED while the keeper is away."""
        call = asyncio.ensure_future(self._call("claim", self._gateway, keys, lease_s))
        try:
            claims: list[Score | Claim] = await asyncio.shield(call)
        except Unavailable:
            return [Claim.OWNED] * len(keys)
        except asyncio.CancelledError:  # the answer still comes, and nobody will measure
            call.add_done_callback(lambda done: self._give_up(keys, done))
            raise
        return claims

    async def settle(self, outcomes: Mapping[ScoreKey, Outcome | None]) -> None:
        """Nothing is kept while the keeper is away."""
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
        """The keeper's answer, by CALL_S after `within_s`. Raises its SynodError, and Unavailable without an answer."""
        away = self._away
        if away is not None and not away.done():
            try:
                answer = asyncio.ensure_future(getattr(self._keeper, method).remote(*arguments))
                return await _first(answer, away, within_s + CALL_S)
            except RayTaskError as error:
                if isinstance(error.cause, SynodError):
                    raise error.cause from None
                log.exception("the shared store failed to %s", method)
            except (RayError, TimeoutError):  # the beat finds out more
                log.warning("the shared store did not answer to '%s'", method)
        metrics.STORE_FAILURES.labels(method).inc()
        raise Unavailable("the service's shared store is away; retry", retry_after_s=1.0)

    async def _beat(self, answered: asyncio.Event) -> None:
        while True:
            try:
                if self._keeper is None:
                    self._keeper = await asyncio.to_thread(self._find)
                async with asyncio.timeout(ANSWER_S if answered.is_set() else OPEN_S):
                    await self._keeper.beat.remote(self._gateway)
                self._is_here()
                answered.set()
            except (RayError, TimeoutError, ValueError) as error:  # ValueError: the name was taken or given up just now
                self._is_away(error)
            await asyncio.sleep(BEAT_S)

    def _is_here(self) -> None:
        if self._away is None or self._away.done():
            log.warning("the shared store is here")
            self._away = asyncio.get_running_loop().create_future()

    def _is_away(self, error: Exception) -> None:
        self._keeper = None  # it may have ended for good, and another be started
        if self._away is not None and not self._away.done():
            log.error(
                "the shared store is away (%s): scores are measured anew, no digest is known", type(error).__name__
            )
            self._away.set_result(None)

    def _give_up(self, keys: Sequence[ScoreKey], claimed: asyncio.Future[Any]) -> None:
        if claimed.cancelled() or claimed.exception() is not None:
            return
        mine = [key for key, claim in zip(keys, claimed.result(), strict=True) if claim is Claim.OWNED]
        if mine:
            task = asyncio.ensure_future(self.settle(dict.fromkeys(mine)))
            _giving_up.add(task)
            task.add_done_callback(_giving_up.discard)


_giving_up: set[asyncio.Future[None]] = set()


def shared(app: str, settings: StoreSettings) -> SharedStore:
    """The store of the gateways of application `app`. Other bounds make another keeper, and the old one ends."""
    size = (settings.max_image_bytes, settings.max_scores)
    options = {
        "name": f"store of {app} {size[0]} {size[1]}",
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",  # from the gateway that happened to start it
        "max_restarts": -1,
        "num_cpus": 0,
        "max_concurrency": CALLS_AT_ONCE,
    }
    return SharedStore(
        lambda: ray.remote(Keeper).options(**options).remote(*size), keeps_scores=settings.max_scores > 0
    )


async def _first(answer: asyncio.Future[Any], away: asyncio.Future[None], within_s: float) -> Any:
    """The answer. Raises what it raises, and TimeoutError when the keeper goes away first or after `within_s`."""
    try:
        waited: set[Awaitable[Any]] = {answer, away}
        await asyncio.wait(waited, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var]
        if not answer.done():
            raise TimeoutError
        return answer.result()
    finally:
        answer.cancel()


def _end_this_actor() -> None:
    ray.kill(ray.get_runtime_context().current_actor)
