"""RayBackend: a ScorerBackend that calls Serve deployments and translates Ray's errors to Synod's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import ray
from ray import serve
from ray.exceptions import ObjectStoreFullError, OutOfDiskError
from ray.serve.handle import DeploymentHandle

from services.backends import Loaded, Readiness, ScorerSpec, Staged
from services.cluster.host import SharedItems
from services.cluster.ray_errors import translate
from services.cluster.readiness import readiness
from services.gateway.shared_call import SharedCall
from services.observability import tracing
from synod.contracts import Outcome, ScoreItem
from synod.errors import Overloaded

APP = "synod"
# Smaller requests are copied into one gRPC message per scorer, which is faster than the object store; larger ones are
# faster through the store, even for one scorer (benchmarks/results/transport.json). Serve's limit is 4 MiB a message.
MIN_SHARED_BYTES = 2**20
LOADED_TIMEOUT_S = 2.0  # for a replica's load report, which needs no device
STATUS_AGE_S = 1.0  # for which Serve's status is not requested again
STATUS_TIMEOUT_S = 4.0  # probes wait 5 s; Serve itself waits for its controller without a limit


class RayBackend:
    """Calls the scorers of Serve's application `app` through `handles`, one per host.

    `wanted` is the number of replicas that each host needs to be ready, `hosts` the scorers of each host.
    """

    def __init__(
        self,
        specs: Mapping[str, ScorerSpec],
        handles: Mapping[str, DeploymentHandle],
        wanted: Mapping[str, int],
        app: str,
        hosts: Mapping[str, Sequence[str]],
    ) -> None:
        self._app = app
        self._host = {name: host for host, names in hosts.items() for name in names}
        self._last = {name: Readiness(True, 0, 0) for name in wanted}
        self._specs = specs
        self._by_reference = handles
        self._by_value = {  # over gRPC, at half the cost of an actor call
            name: handle.options(_by_reference=False, request_serialization="pickle", response_serialization="pickle")
            for name, handle in handles.items()
        }
        self._wanted = wanted
        self._status = SharedCall(lambda: serve.status(), STATUS_AGE_S)

    @property
    def specs(self) -> Mapping[str, ScorerSpec]:
        return self._specs

    async def stage(self, items: tuple[ScoreItem, ...], scorers: int) -> Staged:
        """Put large items into the object store, once for all replicas, and keep no copy here.

        Raises Overloaded if the store is full.
        """
        size = size_of(items)
        if size < MIN_SHARED_BYTES:
            return Staged(items)
        try:
            return Staged((), SharedItems(await asyncio.to_thread(ray.put, items)))
        except (ObjectStoreFullError, OutOfDiskError) as error:
            raise Overloaded(
                f"the object store has no room for {size} bytes ({type(error).__name__}); retry later, send fewer "
                "images at once, or raise [cluster] object_store_bytes"
            ) from error

    async def score(self, scorer: str, staged: Staged, indexes: Sequence[int], timeout_s: float) -> list[Outcome]:
        host = self._host[scorer]
        if staged.shared is not None:
            sent, positions, handle = staged.shared, list(indexes), self._by_reference[host]
        else:
            sent, positions = tuple(staged.items[i] for i in indexes), list(range(len(indexes)))
            handle = self._by_value[host]
        response = handle.score.remote(scorer, sent, positions, timeout_s, tracing.current().traceparent)
        try:
            outcomes: list[Outcome] = await response
            return outcomes
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as error:
            raise translate(scorer, error) from error

    async def readiness(self) -> Mapping[str, Readiness]:
        """Return whether each scorer can serve. A RUNNING replica has loaded its models and passed its golden items.

        A scorer that is scaled to 0 replicas keeps the readiness that it had with its last replica. The status is at
        most STATUS_AGE_S old. No scorer is ready while Serve does not report it within STATUS_TIMEOUT_S.
        """
        try:
            applications = (await self._status.result(STATUS_TIMEOUT_S)).applications
        except TimeoutError:
            reason = f"Serve did not report its status within {STATUS_TIMEOUT_S:g} s"
            return {name: replace(self._last[host], ready=False, reason=reason) for name, host in self._host.items()}
        deployments = applications[self._app].deployments if self._app in applications else {}
        for host, wanted in self._wanted.items():
            self._last[host] = readiness(deployments.get(host), wanted, self._last[host])
        return {name: self._last[host] for name, host in self._host.items()}

    async def loaded(self) -> Mapping[str, Loaded]:
        ready = await self.readiness()
        hosts = [host for host in self._wanted if ready[host].replicas > 0]
        answers = await asyncio.gather(*(self._loaded(host) for host in hosts))
        return {name: one for answer in answers for name, one in answer.items()}

    async def _loaded(self, host: str) -> Mapping[str, Loaded]:
        try:
            async with asyncio.timeout(LOADED_TIMEOUT_S):
                answer: Mapping[str, Loaded] = await self._by_value[host].loaded.remote()
                return answer
        except Exception:  # the replica has ended or is too busy to answer
            return {}


def size_of(items: Sequence[ScoreItem]) -> int:
    """Return the size of decoded items in a message: exact for their pixels, estimated for their other fields."""
    pixels = sum(len(one) if isinstance(one, bytes) else one.nbytes for item in items for one in item.images())
    return pixels + len(ascii([one.inputs() for one in items]))
