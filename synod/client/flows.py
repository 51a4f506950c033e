"""What a client does, without I/O: chunks, retries, uploads. Both clients run these flows over any transport.

A flow is a generator: it yields a step and is sent what the step came to, or has the step's SynodError thrown in.

    Call       send it -> its Answer
    Pause      wait -> None
    Together   run these flows side by side -> their results, in order; the first error ends all
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from synod.client import core
from synod.client.chunks import SMALL_BYTES, Limits, chunked, content_bytes, is_small, split
from synod.client.core import Answer, Call
from synod.client.references import by_digest
from synod.codec import Codec
from synod.contracts import ImageData, PutImagesRequest, ScoreRequest, ScoreResponse
from synod.digest import digest_of
from synod.errors import (
    DeadlineExceeded,
    InvalidRequest,
    PayloadTooLarge,
    SynodError,
    Unavailable,
    UnknownImage,
)
from synod.retry import RetryPolicy
from synod.values import OnError, Values, masked, values_of

T = TypeVar("T")
POLL_S: Final = 0.2
CHUNKS_AT_ONCE: Final = 4  # of one request: the service batches across them
MAX_KNOWN: Final = 65_536  # digests remembered


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait this long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Together:
    """Run these side by side."""

    flows: Sequence[Generator[Any, Any, Any]]


Step = Call | Pause | Together
Flow = Generator[Step, Any, T]


@dataclass(slots=True)
class Flows:
    """One client's flows and what it has learned: the service's limits, and which images the service was given.

    Every flow has a deadline: `timeout_s` from its start, or the request's own `timeout_ms`.
    """

    codec: Codec
    timeout_s: float
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    by_digest: bool = False
    clock: Callable[[], float] = time.monotonic
    limits: Limits | None = None
    known: set[str] = field(default_factory=set)

    def score(self, request: ScoreRequest, *, mask: bool = False) -> Flow[ScoreResponse]:
        """One result per item, in order. With `mask`, calls that failed give failures; an InvalidRequest is raised."""
        request, ends_s = self._begin(request)
        try:
            lean, images = yield from self._with_references(request, ends_s)
            results = yield from self._score_all(lean, images, ends_s, mask)
        except SynodError as error:
            if not mask or isinstance(error, InvalidRequest):
                raise
            return masked(request, error)
        assert request.request_id is not None
        return ScoreResponse(tuple(result for one in results for result in one.results), request.request_id)

    def values(self, request: ScoreRequest, on_error: OnError) -> Flow[Values]:
        """The answer as numbers; see `synod.values`."""
        response = yield from self.score(request, mask=on_error == "mask")
        return values_of(response, on_error)

    def before_stream(self, request: ScoreRequest) -> Flow[ScoreRequest]:
        """The request as a stream is to carry it: with an id and a deadline, its references uploaded if they go so."""
        request, ends_s = self._begin(request)
        lean, _ = yield from self._with_references(request, ends_s)
        return replace(lean, timeout_ms=_ms(ends_s - self.clock()))

    def put_images(self, images: Sequence[ImageData]) -> Flow[tuple[str, ...]]:
        """Have the service keep images; their digests, in order. Raises BadImage for an array that is none."""
        digests = tuple(map(digest_of, images))
        yield from self._upload(dict(zip(digests, images, strict=True)), self.clock() + self.timeout_s)
        return digests

    def catalogue(self) -> Flow[dict[str, Any]]:
        """What the service serves, free-form."""
        return (yield from self._catalogue(self.clock() + self.timeout_s))

    def wait_ready(self, timeout_s: float) -> Flow[None]:
        """Return once every replica can score. Raises Unavailable after `timeout_s`, saying what is missing."""
        ends_s = self.clock() + timeout_s
        while True:
            missing: str | None
            try:
                missing = core.pending((yield Call("ready", max(ends_s - self.clock(), POLL_S))))
            except Unavailable as error:
                missing = str(error)
            if missing is None:
                return
            if ends_s - self.clock() <= POLL_S:
                raise Unavailable(f"not ready after {timeout_s:g} s, waiting for: {missing}")
            yield Pause(POLL_S)

    def _begin(self, request: ScoreRequest) -> tuple[ScoreRequest, float]:
        """The request with an id, under which a retry costs no work done already; and when its time is over."""
        timeout_s = self.timeout_s if request.timeout_ms is None else request.timeout_ms / 1000
        return replace(request, request_id=request.request_id or uuid.uuid4().hex), self.clock() + timeout_s

    def _with_references(self, request: ScoreRequest, ends_s: float) -> Flow[tuple[ScoreRequest, dict[str, ImageData]]]:
        """The request with its references by digest, all of which the service was given; and what they are."""
        if not self.by_digest:
            return request, {}
        lean, images = by_digest(request)
        yield from self._upload({d: image for d, image in images.items() if d not in self.known}, ends_s)
        return lean, images

    def _score_all(
        self, request: ScoreRequest, images: Mapping[str, ImageData], ends_s: float, mask: bool
    ) -> Flow[list[ScoreResponse]]:
        """Whole if it is small or no limits are known to forbid it, else in chunks, several at once."""
        if self.limits is None and not is_small(request):
            yield from self._learn_limits(ends_s)
        if self.limits is None:
            try:
                return [(yield from self._score_chunk(request, images, ends_s, mask))]
            except PayloadTooLarge as refusal:
                try:
                    yield from self._learn_limits(ends_s)
                except SynodError:
                    raise refusal from None
        assert self.limits is not None
        chunks = chunked(request, self.codec, self.limits, images)
        flows = [self._score_chunk(chunk, images, ends_s, mask) for chunk in chunks]
        return [(yield from flows[0])] if len(flows) == 1 else (yield Together(flows))

    def _score_chunk(
        self, request: ScoreRequest, images: Mapping[str, ImageData], ends_s: float, mask: bool
    ) -> Flow[ScoreResponse]:
        try:
            return (yield from self._ask(request, images, ends_s))
        except SynodError as error:
            if not mask or isinstance(error, InvalidRequest):
                raise
            return masked(request, error)

    def _ask(self, request: ScoreRequest, images: Mapping[str, ImageData], ends_s: float) -> Flow[ScoreResponse]:
        """Ask; upload what the service turns out not to keep, if it is ours, and ask again.

        An error over gRPC may name only some of the missing images, so a second one uploads all that are left.
        """

        def call(left_s: float) -> Call:
            return core.score_call(replace(request, timeout_ms=_ms(left_s)), self.codec)

        def read(answer: Answer) -> ScoreResponse:
            return core.read_score(answer, request)

        left = dict(images)
        for uploads in range(3):
            try:
                return (yield from self._sent(call, read, ends_s))
            except UnknownImage as error:
                if uploads == 2 or not error.digests or not set(error.digests) <= set(left):
                    raise
                missing = error.digests if uploads == 0 else tuple(left)
            yield from self._upload({digest: left.pop(digest) for digest in missing}, ends_s)
        raise AssertionError("the last attempt returns or raises")

    def _upload(self, images: Mapping[str, ImageData], ends_s: float) -> Flow[None]:
        sizes = [(1, content_bytes(image)) for image in images.values()]
        if self.limits is None and sum(size for _, size in sizes) > SMALL_BYTES:
            yield from self._learn_limits(ends_s)
        limits = self.limits or Limits()
        for digests in split(list(images), sizes, (limits.max_items, limits.max_body_bytes)):
            yield from self._put(digests, [images[digest] for digest in digests], ends_s)

    def _put(self, digests: tuple[str, ...], images: Sequence[ImageData], ends_s: float) -> Flow[None]:
        request = PutImagesRequest(tuple(images))
        yield from self._sent(
            lambda left_s: core.put_call(request, self.codec, left_s),
            lambda answer: core.read_digests(answer, digests),
            ends_s,
        )
        if len(self.known) + len(digests) > MAX_KNOWN:
            self.known.clear()
        self.known.update(digests)

    def _learn_limits(self, ends_s: float) -> Flow[None]:
        self.limits = Limits.of((yield from self._catalogue(ends_s)))

    def _catalogue(self, ends_s: float) -> Flow[dict[str, Any]]:
        return (yield from self._sent(lambda left_s: Call("scorers", left_s), core.read_catalogue, ends_s))

    def _sent(self, call: Callable[[float], Call], read: Callable[[Answer], T], ends_s: float) -> Flow[T]:
        """What the answer to `call(seconds left)` reads as, after as many attempts as help. Raises SynodError."""
        attempt = 0
        while True:
            left_s = ends_s - self.clock()
            if left_s <= 0:
                raise DeadlineExceeded("the time was over before the service could be asked; allow more")
            try:
                return read((yield call(left_s)))
            except SynodError as error:
                pause_s = self.retry.pause_s(error, attempt, ends_s - self.clock())
                if pause_s is None:
                    raise
            yield Pause(pause_s)
            attempt += 1


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
