"""The client's flows without a network: a scripted service and a simulated clock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from synod.client.chunks import Limits, split_request
from synod.client.core import Call, RawResponse
from synod.client.flows import Flow, Flows, Gather, Sleep, Step, run_flow
from synod.codec import JSON, MSGPACK, PROTOBUF, Codec
from synod.contracts import (
    ImageData,
    ImageRef,
    ItemResult,
    PutImagesResponse,
    Score,
    ScoreFailure,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
)
from synod.digest import digest_of
from synod.errors import (
    BadImage,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    ReplicaLost,
    ScorerFailed,
    SynodError,
    Unauthenticated,
    Unavailable,
    UnknownImage,
    UnknownScorer,
)
from synod.images import encode_png
from synod.retry import RetryPolicy

CAT, DOG = b"\x89PNG cat", np.full((2, 2, 3), 7, np.uint8)
LIMITS = {"scorers": [{"name": "size"}], "limits": {"max_items": 3, "max_body_bytes": 4096, "max_text_chars": 8}}


@dataclass
class RewardService:
    """Score an item by the bytes of its images; keep uploads; fail each call with the next of `faults`."""

    codec: Codec = MSGPACK
    faults: list[Exception | None] = field(default_factory=list)
    kept: dict[str, ImageData] = field(default_factory=dict)
    answer_s: float = 0.0
    now_s: float = 100.0
    received: list[ScoreRequest] = field(default_factory=list)
    puts: list[tuple[ImageData, ...]] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    gather_sizes: list[int] = field(default_factory=list)

    def run(self, flow: Flow[Any]) -> Any:
        return run_flow(flow, self.do)

    def do(self, step: Step) -> object:
        if isinstance(step, Sleep):
            self.pauses.append(step.seconds)
            self.now_s += step.seconds
            return None
        if isinstance(step, Gather):
            self.gather_sizes.append(len(step.flows))
            return [self.run(flow) for flow in step.flows]
        self.calls.append(step.operation)
        self.now_s += self.answer_s
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault
        try:
            return self.answer(step)
        except SynodError as error:
            return RawResponse(error.http_status, self.codec.content_type, self.codec.encode_error(error))

    def answer(self, call: Call) -> RawResponse:
        if call.operation == "scorers":
            return RawResponse(200, JSON.content_type, JSON.dumps(LIMITS, ""))
        if call.operation == "ready":
            scorers = {"size": {"ready": False, "reason": "loading"}}
            return RawResponse(503, JSON.content_type, JSON.dumps({"scorers": scorers}, ""))
        if call.operation == "put_images":
            images = self.codec.decode_put(call.body).images
            self.puts.append(images)
            digests = tuple(map(digest_of, images))
            self.kept.update(zip(digests, images, strict=True))
            return RawResponse(200, self.codec.content_type, self.codec.encode_digests(PutImagesResponse(digests)))
        request = self.codec.decode_request(call.body)
        self.received.append(request)
        unknown = [r.digest for i in request.items for r in i.references if isinstance(r, ImageRef)]
        unknown = [digest for digest in dict.fromkeys(unknown) if digest not in self.kept]
        if unknown:
            raise UnknownImage("upload them", unknown)
        results = tuple(ItemResult({"size": self.score(item)}) for item in request.items)
        body = self.codec.encode_response(ScoreResponse(results, request.request_id or ""))
        return RawResponse(200, self.codec.content_type, body)

    def score(self, item: ScoreItem) -> Score | ScoreFailure:
        if item.prompt == "bad":
            return ScoreFailure.of(BadImage("no image"))
        references = [self.kept[r.digest] if isinstance(r, ImageRef) else r for r in item.references]
        image = item.image if isinstance(item.image, bytes) else b""
        return Score(float(len(image) + sum(len(bytes(memoryview(r).cast("B"))) for r in references)))


def flows(service: RewardService, **options: Any) -> Flows:
    retry = RetryPolicy(options.pop("retries", 4), base_s=1.0, max_s=4.0, uniform=lambda low, high: high)
    return Flows(service.codec, options.pop("timeout_s", 60.0), retry, clock=lambda: service.now_s, **options)


def request(*items: ScoreItem, **options: Any) -> ScoreRequest:
    return ScoreRequest(items or (ScoreItem(CAT),), ("size",), **options)


def sizes(response: ScoreResponse) -> list[Any]:
    return [getattr(result.scores["size"], "value", None) for result in response.results]


# --- retries ---


def test_retries_back_off_and_keep_the_request_id() -> None:
    service = RewardService(
        faults=[Unavailable("down"), Overloaded("full"), ReplicaLost("died"), DeadlineExceeded("late")]
    )
    response = service.run(flows(service).score(request()))
    assert sizes(response) == [8.0]
    assert service.pauses == [1.0, 2.0, 4.0, 4.0]  # doubled, then capped
    assert response.request_id
    assert [one.request_id for one in service.received] == [response.request_id]
    assert service.run(flows(service).score(request())).request_id != response.request_id


def test_each_attempt_carries_the_remaining_time() -> None:
    seen: list[ScoreRequest] = []

    class Flaky(RewardService):
        def answer(self, call: Call) -> RawResponse:
            seen.append(self.codec.decode_request(call.body))
            if len(seen) < 3:
                raise Overloaded("full")
            return super().answer(call)

    service = Flaky(answer_s=2.0)
    service.run(flows(service).score(request(request_id="mine", timeout_ms=20_000)))
    assert {one.request_id for one in seen} == {"mine"}
    assert [one.timeout_ms for one in seen] == [20_000, 17_000, 13_000]


PERMANENT = (InvalidRequest, UnknownScorer, Unauthenticated, SynodError, ScorerFailed)


@pytest.mark.parametrize(
    ("faults", "retries", "answer_s", "pauses", "raised"),
    [
        ([Overloaded("", retry_after_s=7.0), Overloaded("", retry_after_s=0.5)], 4, 0.0, [7.0 + 1.0, 0.5 + 2.0], None),
        ([Unavailable(str(i)) for i in range(9)], 2, 0.0, [1.0, 2.0], Unavailable),
        ([Unavailable("")], 0, 0.0, [], Unavailable),
        ([Overloaded("", retry_after_s=59.5)], 4, 0.0, [], Overloaded),  # the pause would pass the deadline
        ([Unavailable("")] * 9, 9, 20.0, [1.0, 2.0], Unavailable),  # the time of responses counts toward the deadline
        *(([kind("")], 4, 0.0, [], kind) for kind in PERMANENT),
    ],
)
def test_retries_and_pauses(faults: Any, retries: int, answer_s: float, pauses: list[float], raised: Any) -> None:
    service = RewardService(faults=list(faults), answer_s=answer_s)
    with contextlib.nullcontext() if raised is None else pytest.raises(raised) as error:
        service.run(flows(service, retries=retries).score(request()))
    assert error is None or error.value is faults[len(pauses)]
    assert service.pauses == pauses
    assert service.calls == ["score"] * (len(pauses) + 1)


def test_wait_ready_polls_and_says_what_is_missing() -> None:
    service = RewardService(faults=[Unavailable("down")])
    with pytest.raises(Unavailable, match=r"^not ready after 1 s, waiting for: size \(loading\)$"):
        service.run(flows(service).wait_ready(1.0))
    assert service.pauses == [0.2] * 4


def test_jitter_is_full() -> None:
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.0

    retry = RetryPolicy(uniform=uniform)
    assert [retry.pause_s(Unavailable(""), attempt, 60.0) for attempt in range(5)] == [0.0, 0.0, 0.0, 0.0, None]
    assert drawn == [(0.0, 0.1), (0.0, 0.2), (0.0, 0.4), (0.0, 0.8)]
    assert all(0.0 <= (RetryPolicy().pause_s(Unavailable(""), 3, 60.0) or 0.0) <= 0.8 for _ in range(100))


# --- chunks ---


def items(count: int, **fields: Any) -> tuple[ScoreItem, ...]:
    return tuple(ScoreItem(b"x" * i, **fields) for i in range(count))


@pytest.mark.parametrize("codec", [MSGPACK, PROTOBUF], ids=["http", "grpc"])
def test_large_request_is_chunked_and_results_keep_order(codec: Codec) -> None:
    service = RewardService(codec)
    response = service.run(flows(service).score(request(*items(100), request_id="r")))
    assert sizes(response) == [float(i) for i in range(100)]
    assert response.request_id == "r"
    assert service.calls[0] == "scorers"
    assert all(len(one.items) <= 3 and len(codec.encode_request(one)) <= 4096 for one in service.received)
    assert [one.request_id for one in service.received] == [f"r/{i}" for i in range(len(service.received))]
    assert service.gather_sizes == [len(service.received)]


def test_limits_are_fetched_once_and_only_for_large_requests() -> None:
    service = RewardService()
    client = flows(service)
    service.run(client.score(request(*items(64))))
    assert service.calls == ["score"]
    for count in (65, 65, 2):
        service.run(client.score(request(*items(count))))
    assert service.calls.count("scorers") == 1
    assert "/" not in (service.received[-1].request_id or "/")


FOUR = (ScoreItem(b"x" * 1500), ScoreItem(DOG, "p" * 2000), ScoreItem(np.zeros((20, 20, 3), np.uint8)), ScoreItem())


@pytest.mark.parametrize(
    ("sent", "weights", "counts"),
    [
        (FOUR * 3, None, [2, 3, 3, 2, 2]),
        ((ScoreItem(b"x" * 900),) * 6, {"s" * 1500: 1.0}, [2, 2, 2]),  # the weights count in every chunk
        ((ScoreItem(CAT), ScoreItem(b"x" * 9000), ScoreItem(CAT)), None, [1, 1, 1]),  # over by itself: sent alone
    ],
)
def test_chunks_keep_within_max_body_bytes(sent: tuple[ScoreItem, ...], weights: Any, counts: list[int]) -> None:
    whole = request(*sent, request_id="r", weights=weights)
    pieces = split_request(whole, MSGPACK, Limits(100, 4096))
    assert [len(piece.items) for piece in pieces] == counts
    assert all(len(MSGPACK.encode_request(piece)) <= 4096 for piece in pieces if len(piece.items) > 1)
    assert [id(item) for piece in pieces for item in piece.items] == list(map(id, sent))


def test_chunks_keep_within_max_request_pixels() -> None:
    """Arrays, files by their headers, and references by digest, which only the client knows."""
    array, file = np.zeros((10, 10, 3), np.uint8), encode_png(np.zeros((10, 20, 3), np.uint8))
    digest = digest_of(array)
    items = (
        *(ScoreItem(array) for _ in range(3)),
        ScoreItem(file),
        ScoreItem(array, references=(ImageRef(digest), file)),
        ScoreItem(references=(ImageRef(digest_of(b"not known here")),)),
    )
    request = ScoreRequest(items, ("size",), request_id="r")
    pieces = split_request(request, MSGPACK, Limits(max_request_pixels=300), {digest: array})
    assert [len(piece.items) for piece in pieces] == [3, 1, 1, 1]  # the fifth is over by itself and stays alone
    assert [item for piece in pieces for item in piece.items] == list(items)


def test_refused_large_request_is_sent_in_chunks() -> None:
    service = RewardService(faults=[PayloadTooLarge("10 items, the limit is 3")])
    response = service.run(flows(service).score(request(*items(10))))
    assert sizes(response) == [float(i) for i in range(10)]
    assert service.calls == ["score", "scorers", *["score"] * 4]
    stubborn = RewardService(faults=[PayloadTooLarge("no"), SynodError("no catalogue")])
    with pytest.raises(PayloadTooLarge, match=r"^no$"):
        stubborn.run(flows(stubborn).score(request(*items(10))))


@pytest.mark.parametrize("limits", [None, [], {}, {"max_items": "3"}, {"max_items": 0}, {"max_items": True}])
def test_unpublished_limits_are_infinite(limits: Any) -> None:
    found = Limits.from_catalogue({"limits": limits})
    assert found.max_body_bytes == float("inf")
    assert found.max_items >= 1


def test_failed_chunk_is_retried_alone() -> None:
    service = RewardService(faults=[None, Unavailable("down")])
    response = service.run(flows(service, limits=Limits(3, 10**6)).score(request(*items(9))))
    assert sizes(response) == [float(i) for i in range(9)]
    assert len(service.calls) == 4


# --- references by digest ---


def rollouts(count: int) -> tuple[ScoreItem, ...]:
    return tuple(ScoreItem(b"x" * i, references=(CAT, DOG)) for i in range(count))


@pytest.mark.parametrize("codec", [MSGPACK, PROTOBUF], ids=["http", "grpc"])
def test_references_are_uploaded_once(codec: Codec) -> None:
    service = RewardService(codec)
    client = flows(service, by_digest=True)
    for _ in range(3):
        assert sizes(service.run(client.score(request(*rollouts(4))))) == [20.0, 21.0, 22.0, 23.0]
    [put] = service.puts
    assert [digest_of(image) for image in put] == [digest_of(CAT), digest_of(DOG)]
    sent = [reference for one in service.received for item in one.items for reference in item.references]
    assert sent == [ImageRef(digest_of(CAT)), ImageRef(digest_of(DOG))] * 12


def test_references_are_sent_inline_by_default() -> None:
    service = RewardService()
    service.run(flows(service).score(request(*rollouts(1))))
    assert service.puts == []
    assert service.received[0].items[0].references[0] == CAT


def test_evicted_references_are_uploaded_again() -> None:
    service = RewardService()
    client = flows(service, by_digest=True)
    service.run(client.score(request(*rollouts(2))))
    del service.kept[digest_of(DOG)]
    assert sizes(service.run(client.score(request(*rollouts(2), request_id="r")))) == [20.0, 21.0]
    assert [len(put) for put in service.puts] == [2, 1]
    assert [one.request_id for one in service.received[1:]] == ["r", "r"]
    assert service.pauses == []


def test_repeated_unknown_image_is_raised() -> None:
    class Forgetful(RewardService):
        def answer(self, call: Call) -> RawResponse:
            self.kept.clear()
            return super().answer(call)

    service = Forgetful()
    with pytest.raises(UnknownImage) as raised:
        service.run(flows(service, by_digest=True).score(request(*rollouts(1))))
    assert len(raised.value.digests) == 2
    assert service.calls == ["put_images", "score", "put_images", "score"]


def test_unknown_digest_of_the_caller_is_raised() -> None:
    service = RewardService()
    own = ScoreItem(CAT, references=(ImageRef(digest_of(b"elsewhere")), DOG))
    with pytest.raises(UnknownImage) as raised:
        service.run(flows(service, by_digest=True).score(request(own)))
    assert raised.value.digests == (digest_of(b"elsewhere"),)
    assert service.calls == ["put_images", "score"]


def test_uploads_keep_within_limits() -> None:
    service = RewardService()
    many = tuple(bytes([i]) * 1000 for i in range(8))
    service.run(flows(service, limits=Limits(3, 4096)).put_images(many))
    assert [len(put) for put in service.puts] == [3, 3, 2]
    heavy = RewardService()
    heavy.run(flows(heavy).put_images([bytes(2**21), bytes(10)]))
    assert heavy.calls == ["scorers", "put_images", "put_images"]


def test_bad_reference_error_names_its_path() -> None:
    service = RewardService()
    bad = ScoreItem(CAT, references=(CAT, DOG[0]))
    with pytest.raises(InvalidRequest, match=r"^items\[0\]\.references\[1\]: uint8 \[2, 3\]"):
        service.run(flows(service, by_digest=True).score(request(bad)))
    assert service.calls == ["put_images"]


def test_remembered_digests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synod.client.flows.MAX_UPLOADED", 3)
    service = RewardService()
    client = flows(service, by_digest=True)
    for i in range(10):
        service.run(client.score(request(ScoreItem(CAT, references=(bytes([i]),)))))
        assert len(client.uploaded) <= 3


# --- raise or mask ---


def masked(service: RewardService, *of: ScoreItem, **options: Any) -> Any:
    return service.run(flows(service, **options).values(request(*of), "mask"))


def test_values_are_numbers_and_masks() -> None:
    service = RewardService()
    values = masked(service, ScoreItem(CAT), ScoreItem(prompt="bad"), ScoreItem(b"x"))
    assert values.scores == {"size": (8.0, None, 1.0)}
    assert values.rewards == (None, None, None)
    [missing] = values.missing
    assert (missing.index, missing.scorer, missing.failure.code) == (1, "size", "bad_image")


def test_raise_raises_the_first_failure_by_type() -> None:
    service = RewardService()
    with pytest.raises(BadImage, match=r"^items\[1\]\.size: no image$"):
        service.run(flows(service).values(request(ScoreItem(CAT), ScoreItem(prompt="bad")), "raise"))
    lost = RewardService(faults=[Unavailable("down")])
    with pytest.raises(Unavailable):
        lost.run(flows(lost, retries=0).values(request(), "raise"))


@pytest.mark.parametrize("error", [Unavailable("down"), SynodError("broke"), UnknownImage("?", [digest_of(b"z")])])
def test_mask_covers_a_failed_call(error: SynodError) -> None:
    service = RewardService(faults=[error])
    values = masked(service, ScoreItem(CAT), ScoreItem(CAT), retries=0)
    assert values.scores == {"size": (None, None)}
    assert [one.failure for one in values.missing] == [ScoreFailure.of(error)] * 2


def test_failed_chunk_masks_only_its_items() -> None:
    service = RewardService(faults=[None, Unavailable("down")])
    values = masked(service, *items(9), retries=0, limits=Limits(3, 10**6))
    assert values.scores["size"] == (0.0, 1.0, 2.0, None, None, None, 6.0, 7.0, 8.0)
    assert [one.index for one in values.missing] == [3, 4, 5]


def test_failed_upload_masks_every_item() -> None:
    service = RewardService(faults=[Unavailable("down")])
    assert masked(service, *rollouts(2), retries=0, by_digest=True).scores == {"size": (None, None)}


def test_mask_covers_requested_rewards() -> None:
    service = RewardService(faults=[Unavailable("down")])
    received = ScoreRequest((ScoreItem(CAT),), (), "sync_r1")
    values = service.run(flows(service, retries=0).values(received, "mask"))
    assert (values.scores, values.rewards) == ({}, (None,))
    assert [(one.scorer, one.failure.code) for one in values.missing] == [(None, "unavailable")]


@pytest.mark.parametrize("kind", [InvalidRequest, UnknownScorer, Unauthenticated])
@pytest.mark.parametrize("limits", [None, Limits(1, 10**6)])
def test_mask_still_raises_invalid_requests(kind: type[SynodError], limits: Limits | None) -> None:
    service = RewardService(faults=[kind("wrong")])
    with pytest.raises(kind, match=r"^wrong$"):
        masked(service, ScoreItem(CAT), ScoreItem(CAT), limits=limits)


def test_expired_deadline_raises_without_a_call() -> None:
    service = RewardService(answer_s=25.0)
    flow: Callable[..., Any] = flows(service, limits=Limits(1, 10**6)).score
    with pytest.raises(DeadlineExceeded, match="the timeout passed before the call could be sent"):
        service.run(flow(request(*items(5))))
    assert len(service.calls) == 3
