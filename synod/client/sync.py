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
from synod.client.flows import MAX_CONCURRENT_CHUNKS, Flow, Flows, Gather, Sleep, Step, run_flow
from synod.client.headers import find_token
from synod.client.http import HttpTransport
from synod.client.transport import Transport, scheme_of
from synod.contracts import ImageData, Part, ScoreRequest, ScoreResponse
from synod.errors import UnknownImage
from synod.retry import RetryPolicy
from synod.values import OnError, Values

T = TypeVar("T")


class SynodClient:
    """Call a reward service. Use it as a context manager, or `close` it.

    It is thread-safe and has one connection pool. `base_url` is http://, https://, grpc:// or grpcs://. `timeout_s`
    bounds every call, its retries included; a score request may set a `timeout_ms` of its own. Over HTTP a call may end
    late: by one `timeout_s` after a slow upload, and a stream may wait `timeout_s` for each part. `retries` is how
    often a call is sent again when the service is unavailable or overloaded; a request keeps its id, so that finished
    work is not repeated. With `by_digest` references are uploaded once and sent by digest afterwards. `token` is the
    bearer token; by default SYNOD_TOKEN, or the content of the file SYNOD_TOKEN_FILE. A request over the service's
    limits is sent in chunks. `transport` replaces HTTP's network, for tests.

    Every method raises the service's SynodError; Unavailable when the service cannot be reached; DeadlineExceeded when
    it does not answer in time. A `base_url` that is not a Synod URL raises ValueError; a token or a proxy of the
    environment (`synod.client.proxy`) that cannot be used raises SettingsError.
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
        """Score items: one result each, in order.

        A score that failed is a ScoreFailure in its place, not an exception.
        """
        return self._run(self._flows.score(request))

    def values(self, request: ScoreRequest, *, on_error: OnError = "raise") -> Values:
        """Score items and return numbers, None where a score is missing.

        "raise" raises the first failure. "mask" lists failures in `missing`, of single scores and of whole calls; an
        InvalidRequest is raised even so, because a retry cannot help.
        """
        return self._run(self._flows.values(request, on_error))

    def stream(self, request: ScoreRequest) -> Generator[Part]:
        """Yield each item's outcome by each scorer as soon as it is known, then the rewards.

        A stream is neither split nor retried: after Unavailable, send it again with the same `request_id`. Only
        references that the service has evicted are uploaded again, once, if no part has arrived.
        """
        request, deadline_s = self._flows.start(request)
        refusal: UnknownImage | None = None
        while True:
            sent = self._run(self._flows.prepare_stream(request, deadline_s, refusal))
            reader = core.PartReader(sent, self._transport.part_codec)
            try:
                with closing(self._transport.stream(core.stream_call(sent, self._transport.codec))) as parts:
                    for data in parts:
                        yield reader.read(data)
                reader.close()
                return
            except UnknownImage as error:
                if refusal is not None or reader.started:
                    raise
                refusal = error

    def put_images(self, images: Sequence[ImageData]) -> tuple[str, ...]:
        """Upload images; return their digests, in order, for `ImageRef`."""
        return self._run(self._flows.put_images(images))

    def scorers(self) -> list[dict[str, Any]]:
        """Return the scorers served: name, needs, low, high, source, summary."""
        return self._run(self._flows.scorers())

    def ensembles(self) -> dict[str, dict[str, Any]]:
        """Return the ensembles served by name: weights, by_kind, missing, clip_at_zero."""
        return self._run(self._flows.ensembles())

    def wait_ready(self, timeout_s: float) -> None:
        """Return once every replica can score.

        Raises Unavailable after `timeout_s`, naming what is not ready.
        """
        self._run(self._flows.wait_ready(timeout_s))

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> SynodClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, flow: Flow[T]) -> T:
        return run_flow(flow, self._do)

    def _do(self, step: Step) -> object:
        if isinstance(step, Sleep):
            time.sleep(step.seconds)
            return None
        if isinstance(step, Gather):

            def run(flow: Flow[Any], context: Context) -> Any:
                return context.run(self._run, flow)

            with ThreadPoolExecutor(MAX_CONCURRENT_CHUNKS) as pool:  # each in the caller's context, with its span
                return list(pool.map(run, step.flows, [copy_context() for _ in step.flows]))
        return self._transport.send(step)


def _transport(base_url: str, token: str | None, replacement: httpx.BaseTransport | None) -> Transport:
    if scheme_of(base_url).startswith("http"):
        return HttpTransport(base_url, token, replacement)
    from synod.client.rpc import RpcTransport  # grpc is slow to import

    return RpcTransport(base_url, token)
