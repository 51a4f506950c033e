"""What a client does, without I/O: chunks, retries, uploads. Both clients run these flows.

A flow is a generator: it yields a step and receives the step's result, or the step's SynodError is thrown into it.

    Call       send it -> its RawResponse
    Sleep      wait -> None
    Gather     run these flows concurrently -> their results, in order; the first error ends all
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from synod.client import core
from synod.client.chunks import SMALL_BYTES, Limits, image_bytes, is_small, split_by_size, split_request
from synod.client.core import Call, RawResponse
from synod.client.references import references_by_digest
from synod.codec import Codec
from synod.contracts import ImageData, PutImagesRequest, ScoreRequest, ScoreResponse
from synod.digest import digest_of
from synod.errors import DeadlineExceeded, InvalidRequest, PayloadTooLarge, SynodError, Unavailable, UnknownImage
from synod.retry import RetryPolicy
from synod.values import OnError, Values, failed_response, values_of

T = TypeVar("T")
POLL_INTERVAL_S: Final = 0.2
MAX_CONCURRENT_CHUNKS: Final = 4  # of one request: the service batches across them
MAX_UPLOADED: Final = 65_536  # digests remembered


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait this long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Gather:
    """Run these flows concurrently."""

    flows: Sequence[Generator[Any, Any, Any]]


Step = Call | Sleep | Gather
Flow = Generator[Step, Any, T]


@dataclass(slots=True)
class Flows:
    """One client's flows, with the service's limits and the digests that it has uploaded.

    Every flow has a deadline: `timeout_s` from its start, or the request's own `timeout_ms`.
    """

    codec: Codec
    timeout_s: float
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    by_digest: bool = False
    clock: Callable[[], float] = time.monotonic
    limits: Limits | None = None
    uploaded: set[str] = field(default_factory=set)

    def score(self, request: ScoreRequest, *, mask: bool = False) -> Flow[ScoreResponse]:
        """Score items: one result each, in order.

        With `mask` a failed call gives failures instead of raising; InvalidRequest is always raised.
        """
        request, deadline_s = self.start(request)
        try:
            request, images = yield from self._upload_references(request, deadline_s)
            results = yield from self._score_all(request, images, deadline_s, mask)
        except SynodError as error:
            if not mask or isinstance(error, InvalidRequest):
                raise
            return failed_response(request, error)
        assert request.request_id is not None
        return ScoreResponse(tuple(result for one in results for result in one.results), request.request_id)

    def values(self, request: ScoreRequest, on_error: OnError) -> Flow[Values]:
        """Score items and return the numbers; see `synod.values`."""
        response = yield from self.score(request, mask=on_error == "mask")
        return values_of(response, on_error)

    def prepare_stream(
        self, request: ScoreRequest, deadline_s: float, refusal: UnknownImage | None = None
    ) -> Flow[ScoreRequest]:
        """Return what to stream of a request that `start` returned: its references are uploaded if `by_digest`.

        `refusal` is the error of an attempt before. The service has evicted references: all of the request are uploaded
        again. Raises `refusal` if it names an image that is not one of them.
        """
        request, _ = yield from self._upload_references(request, deadline_s, refusal)
        return replace(request, timeout_ms=_ms(deadline_s - self.clock()))

    def put_images(self, images: Sequence[ImageData]) -> Flow[tuple[str, ...]]:
        """Upload images; return their digests, in order. Raises BadImage for an array that is not an image."""
        digests = tuple(map(digest_of, images))
        yield from self._upload(dict(zip(digests, images, strict=True)), self.clock() + self.timeout_s)
        return digests

    def scorers(self) -> Flow[list[dict[str, Any]]]:
        """Return the scorers served, free-form."""
        scorers: list[dict[str, Any]] = (yield from self._catalogue(self.clock() + self.timeout_s))["scorers"]
        return scorers

    def ensembles(self) -> Flow[dict[str, dict[str, Any]]]:
        """Return the ensembles served by name, free-form."""
        catalogue = yield from self._catalogue(self.clock() + self.timeout_s)
        ensembles = catalogue.get("ensembles", {})
        if not isinstance(ensembles, dict):
            raise SynodError(f"the response has no table of ensembles; {core.CHECK_URL}")
        return ensembles

    def wait_ready(self, timeout_s: float) -> Flow[None]:
        """Return once every replica can score.

        Raises Unavailable after `timeout_s`, naming what is not ready.
        """
        deadline_s = self.clock() + timeout_s
        while True:
            unready: str | None
            try:
                unready = core.describe_unready((yield Call("ready", max(deadline_s - self.clock(), POLL_INTERVAL_S))))
            except Unavailable as error:
                unready = str(error)
            if unready is None:
                return
            if deadline_s - self.clock() <= POLL_INTERVAL_S:
                raise Unavailable(f"not ready after {timeout_s:g} s, waiting for: {unready}")
            yield Sleep(POLL_INTERVAL_S)

    def start(self, request: ScoreRequest) -> tuple[ScoreRequest, float]:
        """Return the request with an id, so that a retry repeats no finished work, and its deadline."""
        timeout_s = self.timeout_s if request.timeout_ms is None else request.timeout_ms / 1000
        return replace(request, request_id=request.request_id or uuid.uuid4().hex), self.clock() + timeout_s

    def _upload_references(
        self, request: ScoreRequest, deadline_s: float, refusal: UnknownImage | None = None
    ) -> Flow[tuple[ScoreRequest, dict[str, ImageData]]]:
        """Upload new references, or all after a refusal; return the request with them by digest, and the images."""
        if not self.by_digest:
            if refusal is not None:
                raise refusal
            return request, {}
        request, images = references_by_digest(request)
        if refusal is not None:
            if not refusal.digests or not set(refusal.digests) <= set(images):
                raise refusal
            self.uploaded.difference_update(images)  # all: an error over gRPC may name only some of the missing images
        yield from self._upload({d: image for d, image in images.items() if d not in self.uploaded}, deadline_s)
        return request, images

    def _score_all(
        self, request: ScoreRequest, images: Mapping[str, ImageData], deadline_s: float, mask: bool
    ) -> Flow[list[ScoreResponse]]:
        """Send the request in one piece if it is small or fits the limits, else in concurrent chunks."""
        if self.limits is None and not is_small(request):
            yield from self._fetch_limits(deadline_s)
        if self.limits is None:
            try:
                return [(yield from self._score_chunk(request, images, deadline_s, mask))]
            except PayloadTooLarge as refusal:
                try:
                    yield from self._fetch_limits(deadline_s)
                except SynodError:
                    raise refusal from None
        assert self.limits is not None
        chunks = split_request(request, self.codec, self.limits, images)
        flows = [self._score_chunk(chunk, images, deadline_s, mask) for chunk in chunks]
        return [(yield from flows[0])] if len(flows) == 1 else (yield Gather(flows))

    def _score_chunk(
        self, request: ScoreRequest, images: Mapping[str, ImageData], deadline_s: float, mask: bool
    ) -> Flow[ScoreResponse]:
        try:
            return (yield from self._score_one(request, images, deadline_s))
        except SynodError as error:
            if not mask or isinstance(error, InvalidRequest):
                raise
            return failed_response(request, error)

    def _score_one(
        self, request: ScoreRequest, images: Mapping[str, ImageData], deadline_s: float
    ) -> Flow[ScoreResponse]:
        """Send one request; upload the images that the service lacks, if known here, and send it again.

        An error over gRPC may name only some of the missing images, so a second one uploads all that remain.
        """

        def call(left_s: float) -> Call:
            return core.score_call(replace(request, timeout_ms=_ms(left_s)), self.codec)

        def read(raw: RawResponse) -> ScoreResponse:
            return core.read_score(raw, request)

        left = dict(images)
        for uploads in range(3):
            try:
                return (yield from self._call(call, read, deadline_s))
            except UnknownImage as error:
                if uploads == 2 or not error.digests or not set(error.digests) <= set(left):
                    raise
                missing = error.digests if uploads == 0 else tuple(left)
            yield from self._upload({digest: left.pop(digest) for digest in missing}, deadline_s)
        raise AssertionError("the last attempt returns or raises")

    def _upload(self, images: Mapping[str, ImageData], deadline_s: float) -> Flow[None]:
        sizes = [(1, image_bytes(image)) for image in images.values()]
        if self.limits is None and sum(size for _, size in sizes) > SMALL_BYTES:
            yield from self._fetch_limits(deadline_s)
        limits = self.limits or Limits()
        for digests in split_by_size(list(images), sizes, (limits.max_items, limits.max_body_bytes)):
            yield from self._put(digests, [images[digest] for digest in digests], deadline_s)

    def _put(self, digests: tuple[str, ...], images: Sequence[ImageData], deadline_s: float) -> Flow[None]:
        request = PutImagesRequest(tuple(images))
        yield from self._call(
            lambda left_s: core.put_call(request, self.codec, left_s),
            lambda raw: core.read_digests(raw, digests),
            deadline_s,
        )
        if len(self.uploaded) + len(digests) > MAX_UPLOADED:
            self.uploaded.clear()
        self.uploaded.update(digests)

    def _fetch_limits(self, deadline_s: float) -> Flow[None]:
        self.limits = Limits.from_catalogue((yield from self._catalogue(deadline_s)))

    def _catalogue(self, deadline_s: float) -> Flow[dict[str, Any]]:
        return (yield from self._call(lambda left_s: Call("scorers", left_s), core.read_catalogue, deadline_s))

    def _call(self, call: Callable[[float], Call], read: Callable[[RawResponse], T], deadline_s: float) -> Flow[T]:
        """Send `call(seconds left)`, retry as the policy allows, and return what `read` makes of the response."""
        attempt = 0
        while True:
            left_s = deadline_s - self.clock()
            if left_s <= 0:
                raise DeadlineExceeded("the timeout passed before the call could be sent; allow more time")
            try:
                return read((yield call(left_s)))
            except SynodError as error:
                pause_s = self.retry.pause_s(error, attempt, deadline_s - self.clock())
                if pause_s is None:
                    raise
            yield Sleep(pause_s)
            attempt += 1


def run_flow(flow: Flow[T], do: Callable[[Step], object]) -> T:
    """Run a flow to its end; `do` performs one step and returns its result, or raises its SynodError."""
    try:
        step = next(flow)
        while True:
            try:
                outcome = do(step)
            except SynodError as error:
                step = flow.throw(error)
            else:
                step = flow.send(outcome)
    except StopIteration as done:
        result: T = done.value
        return result


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
