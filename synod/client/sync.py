"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any, TypeVar

import httpx

from synod.client import core
from synod.client.flows import CHUNKS_AT_ONCE, Flow, Flows, Pause, Step, Together
from synod.client.http import HttpTransport
from synod.client.token import find_token
from synod.client.transport import Transport, scheme_of
from synod.contracts import ImageData, Part, ScoreRequest, ScoreResponse
from synod.errors import SynodError
from synod.retry import RetryPolicy
from synod.values import OnError, Values

T = TypeVar("T")


class SynodClient:
    """A service's client; thread-safe, one connection pool. Use it as a context manager, or `close` it.

    `base_url` is http://, https://, grpc:// or grpcs://. `timeout_s` bounds a score request that sets no `timeout_ms`
    of its own, and every other call, retries included. `retries` bounds how often a call is sent again when the service
    is away or full; a request keeps its id, so that work done already costs nothing. With `by_digest` references are
    uploaded once and sent by digest from then on. `token` is the bearer token; absent, SYNOD_TOKEN or the file that
    SYNOD_TOKEN_FILE names. A request over the service's limits is sent in chunks. `transport` replaces HTTP's network,
    for tests.

    Every method raises the SynodError that the service tells of; Unavailable when it cannot be reached,
    DeadlineExceeded
    when it does not answer in time. A `base_url` that cannot be one is a ValueError; a token, or a proxy of the
    environment (`synod.client.proxy`), that cannot be used is a SettingsError.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float = 60.0,
        retries: int = 4,
        by_digest: bool = False,
        token: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._transport = _transport(base_url, find_token(token), transport)
        self._flows = Flows(self._transport.codec, timeout_s, RetryPolicy(retries), by_digest)

    def score(self, request: ScoreRequest) -> ScoreResponse:
        """One result per item, in order. A score that failed is a ScoreFailure in its place, not an exception."""
        return self._run(self._flows.score(request))

    def values(self, request: ScoreRequest, *, on_error: OnError = "raise") -> Values:
        """The answer as numbers. "raise" raises the first failure; "mask" makes it None and keeps it in `missing`: a
        score's or a whole call's, save an InvalidRequest, which no later request would mend."""
        return self._run(self._flows.values(request, on_error))

    def stream(self, request: ScoreRequest) -> Generator[Part]:
        """Each item's outcome by each scorer as soon as it is known, then the rewards. Not chunked, not retried: after
        Unavailable ask again under the same `request_id`."""
        sent = self._run(self._flows.before_stream(request))
        reader = core.PartReader(sent, self._transport.part_codec)
        with closing(self._transport.stream(core.stream_call(sent, self._transport.codec))) as parts:
            for data in parts:
                yield reader.read(data)
        reader.close()

    def put_images(self, images: Sequence[ImageData]) -> tuple[str, ...]:
        """Have the service keep images; their digests, in order, for `ImageRef`."""
        return self._run(self._flows.put_images(images))

    def scorers(self) -> list[dict[str, Any]]:
        """The scorers served: name, needs, low, high, source, summary."""
        scorers: list[dict[str, Any]] = self._run(self._flows.catalogue())["scorers"]
        return scorers

    def wait_ready(self, timeout_s: float) -> None:
        """Return once every replica can score. Raises Unavailable after `timeout_s`, saying what is missing."""
        self._run(self._flows.wait_ready(timeout_s))

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> SynodClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    came_to = self._do(step)
                except SynodError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(came_to)
        except StopIteration as done:
            result: T = done.value
            return result

    def _do(self, step: Step) -> object:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        if isinstance(step, Together):

            def run(flow: Flow[Any], context: Context) -> Any:
                return context.run(self._run, flow)

            with ThreadPoolExecutor(CHUNKS_AT_ONCE) as pool:  # each with the caller's context: its span, say
                return list(pool.map(run, step.flows, [copy_context() for _ in step.flows]))
        return self._transport.send(step)


def _transport(base_url: str, token: str | None, replacement: httpx.BaseTransport | None) -> Transport:
    if scheme_of(base_url).startswith("http"):
        return HttpTransport(base_url, token, replacement)
    from synod.client.rpc import RpcTransport  # grpc is slow to import, and not everyone's

    return RpcTransport(base_url, token)
