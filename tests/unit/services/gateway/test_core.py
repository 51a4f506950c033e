"""A gateway fans out, retries and keeps deadlines, with a backend that the test controls."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.backends import Staged
from services.gateway import decode, fanout
from services.gateway.core import Gateway
from services.gateway.images import request_pixels
from services.settings import LimitSettings
from synod.contracts import Concept, ImageRef, ItemResult, Score, ScoreFailure, ScoreItem, ScoreRequest
from synod.errors import Overloaded, PayloadTooLarge, ReplicaLost, Unavailable
from synod.images import encode_png, pixel_count
from synod.retry import RetryPolicy
from tests.outcomes import value


def item(level: int, kind: Any = None) -> ScoreItem:
    return ScoreItem(np.full((4, 4, 3), level, np.uint8), concept=kind and Concept(kind))


def table(results: Sequence[ItemResult]) -> list[dict[str, float | str | None]]:
    return [{name: value(outcome) for name, outcome in result.scores.items()} for result in results]


async def test_each_scorer_is_called_once_for_its_items(gateway: Gateway, backend: Any) -> None:
    request = ScoreRequest((item(51, "person"), item(102, "animal"), item(153)), ("b",), "council")
    response = await gateway.score(request)
    assert sorted(backend.calls) == [("a", (0, 1)), ("b", (0, 1, 2)), ("face", (0,))]
    assert table(response.results) == [{"b": 0.2, "a": 0.2, "face": 0.2}, {"b": 0.4, "a": 0.4}, {"b": 0.6}]
    assert [value(result.reward) for result in response.results] == [
        pytest.approx(0.2),
        pytest.approx(0.4),
        "missing_input",
    ]


async def test_named_scorer_is_called_even_with_weight_zero(gateway: Gateway, backend: Any) -> None:
    await gateway.score(ScoreRequest((item(0, "animal"),), ("face",), "council"))
    assert sorted(backend.calls) == [("a", (0,)), ("b", (0,)), ("face", (0,))]


async def test_bad_image_fails_alone_and_reaches_no_scorer(gateway: Gateway, backend: Any) -> None:
    bad = ScoreItem(b"no image", concept=Concept("animal"))
    large = ScoreItem(np.zeros((101, 100, 3), np.uint8), concept=Concept("animal"))
    response = await gateway.score(ScoreRequest((item(51, "animal"), bad, large), ensemble="council"))
    assert table(response.results) == [
        {"a": 0.2, "b": 0.2},
        {"a": "bad_image", "b": "bad_image"},
        {"a": "image_too_large", "b": "image_too_large"},
    ]
    assert [value(r.reward) for r in response.results] == [pytest.approx(0.2), "bad_image", "image_too_large"]
    assert sorted(backend.calls) == [("a", (0,)), ("b", (0,))]
    assert table((await gateway.score(ScoreRequest((bad,), ("a",)))).results) == [{"a": "bad_image"}]
    assert len(backend.calls) == 2


@pytest.mark.parametrize(
    "errors", [[ReplicaLost("gone")], [Overloaded("full")] * 2, [ReplicaLost("gone"), Unavailable("no replica")]]
)
async def test_lost_full_or_absent_replica_is_retried(gateway: Gateway, backend: Any, errors: list[Exception]) -> None:
    backend.plan["a"] = list(errors)
    response = await gateway.score(ScoreRequest((item(51), item(102)), ("a", "b")))
    assert table(response.results) == [{"a": 0.2, "b": 0.2}, {"a": 0.4, "b": 0.4}]
    assert backend.calls.count(("a", (0, 1))) == len(errors) + 1
    assert backend.calls.count(("b", (0, 1))) == 1


async def test_only_lost_items_are_retried(gateway: Gateway, backend: Any) -> None:
    """Scores of a partial response are kept."""
    lost = ScoreFailure("replica_lost", "gone", retryable=True)
    own = ScoreFailure("scorer_failed", "poison")
    backend.plan["a"] = [lambda items: [Score(0.125), lost, own]]
    response = await gateway.score(ScoreRequest((item(51), item(102), item(153)), ("a",)))
    assert table(response.results) == [{"a": 0.125}, {"a": 0.4}, {"a": "scorer_failed"}]
    assert backend.calls == [("a", (0, 1, 2)), ("a", (1,))]


async def test_retries_end_with_the_deadline(gateway: Gateway, backend: Any) -> None:
    """A service that has no replica may recover until then."""
    backend.plan["a"] = [Unavailable("no replica")] * 1000
    response = await gateway.score(ScoreRequest((item(51),), ("a", "b"), timeout_ms=300))
    (scores,) = table(response.results)
    assert scores["b"] == 0.2
    assert scores["a"] in ("unavailable", "deadline_exceeded")
    assert 2 <= len(backend.calls) < 20


@pytest.fixture
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "BACKOFF", RetryPolicy(base_s=0.001, max_s=0.001))


def killed_by(*levels: int) -> Any:
    """Return a step that scores items, unless it dies of one of these levels."""

    def step(items: Sequence[ScoreItem]) -> list[Score]:
        if any(one.pixels()[0, 0, 0] in levels for one in items):
            raise ReplicaLost("gone")
        return [Score(float(one.pixels()[0, 0, 0])) for one in items]

    return step


@pytest.mark.usefixtures("_short_pauses")
async def test_an_item_that_kills_its_replicas_fails_alone(gateway: Gateway, backend: Any) -> None:
    """The call is sent twice, then in halves: not to one replica after another until the deadline."""
    backend.plan["a"] = [killed_by(6)] * 1000
    response = await gateway.score(ScoreRequest(tuple(map(item, range(8))), ("a",)))
    assert [row["a"] for row in table(response.results)] == [0, 1, 2, 3, 4, 5, "scorer_failed", 7]
    everything = tuple(range(8))
    indexes = [everything, everything, (0, 1, 2, 3), (4, 5, 6, 7), (4, 5), (6, 7), (6,), (7,)]
    assert backend.calls == [("a", one) for one in indexes]
    failure = response.results[6].scores["a"]
    assert isinstance(failure, ScoreFailure)
    assert failure.message.startswith("5 replicas of scorer 'a' died while they scored this item")
    assert not failure.retryable


@pytest.mark.usefixtures("_short_pauses")
@pytest.mark.parametrize("first", [[], [Unavailable("no replica")] * 5])
async def test_a_single_item_kills_three_replicas_at_most(gateway: Gateway, backend: Any, first: list[Any]) -> None:
    backend.plan["a"] = [*first, *[killed_by(6)] * 1000]
    response = await gateway.score(ScoreRequest((item(6),), ("a",)))
    assert table(response.results) == [{"a": "scorer_failed"}]
    assert len(backend.calls) == len(first) + 3


@pytest.mark.usefixtures("_short_pauses")
async def test_a_replica_killed_by_another_request_fails_no_item(
    gateway: Gateway, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that dies loses all calls that it holds. Calls that lost two of them take turns."""
    died = asyncio.Event()

    async def score(scorer: str, staged: Staged, indexes: Sequence[int], timeout_s: float) -> list[Score]:
        nonlocal died
        items = [staged.items[i] for i in indexes]
        replica = died
        if any(one.pixels()[0, 0, 0] == 6 for one in items):
            await asyncio.sleep(0.01)
            died = asyncio.Event()
            replica.set()
            raise ReplicaLost("gone")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(replica.wait(), 0.1)
            raise ReplicaLost("gone")
        return [Score(1.0) for _ in items]

    monkeypatch.setattr(backend, "score", score)
    requests = [ScoreRequest((item(level),), ("a",)) for level in (5, 6, 7)]
    responses = await asyncio.gather(*map(gateway.score, requests))
    assert [table(one.results) for one in responses] == [[{"a": 1.0}], [{"a": "scorer_failed"}], [{"a": 1.0}]]


async def test_scores_of_the_first_try_survive_a_late_retry(gateway: Gateway, backend: Any) -> None:
    lost = ScoreFailure("replica_lost", "gone", retryable=True)
    backend.plan["a"] = [lambda items: [Score(0.125), lost], 3600.0]
    response = await gateway.score(ScoreRequest((item(51), item(102)), ("a",), timeout_ms=600))
    assert backend.calls == [("a", (0, 1)), ("a", (1,))]
    assert table(response.results) == [{"a": 0.125}, {"a": "replica_lost"}]


async def test_deadline_fails_one_scorer_and_cancels_its_work(gateway: Gateway, backend: Any) -> None:
    backend.plan["a"] = [3600.0]
    response = await gateway.score(ScoreRequest((item(51, "animal"),), ensemble="council", timeout_ms=100))
    assert table(response.results) == [{"a": "deadline_exceeded", "b": 0.2}]
    assert value(response.results[0].reward) == "deadline_exceeded"
    assert backend.cancelled == ["a"]


async def test_slow_decoding_fails_at_the_deadline(
    gateway: Gateway, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    real = decode.decode_item
    monkeypatch.setattr(decode, "decode_item", lambda i, limits: never.wait(10) if i.prompt else real(i, limits))
    slow = ScoreItem(encode_png(np.zeros((4, 4, 3), np.uint8)), prompt="slow")
    response = await gateway.score(ScoreRequest((item(51), slow), ("a",), timeout_ms=200))
    never.set()
    assert table(response.results)[1] == {"a": "deadline_exceeded"}


async def test_pixels_in_decoding_are_bounded(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image above the bound is decoded alone."""
    sides = [10, 10, 40, 10, 30, 10, 10, 30, 10, 10]
    decoding, most, lock = list[int](), list[int](), threading.Lock()
    real = decode.decode_item

    def count(one: ScoreItem, limits: Any) -> ScoreItem:
        pixels = pixel_count(one.image) if isinstance(one.image, bytes) else 0
        with lock:
            decoding.append(pixels)
            most.append(sum(decoding) if len(decoding) > 1 else 0)
        time.sleep(0.01)
        with lock:
            decoding.remove(pixels)
        return real(one, limits)

    monkeypatch.setattr(decode, "decode_item", count)
    decoder = decode.Decoder(LimitSettings(max_image_pixels=2000, max_request_pixels=4000))
    items = [ScoreItem(encode_png(np.zeros((side, side, 3), np.uint8))) for side in sides]
    decoded = await decoder.decode(items, time.monotonic() + 60)
    assert [one.pixels().shape[0] for one in decoded if isinstance(one, ScoreItem)] == sides
    assert max(most) <= 1000
    decoder.close()


async def test_shared_references_are_decoded_once_in_order(
    gateway: Gateway, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    real = decode.decode_item

    def count(one: ScoreItem, limits: Any) -> ScoreItem:
        decoded.extend(r for r in one.references if isinstance(r, bytes))
        return real(one, limits)

    monkeypatch.setattr(decode, "decode_item", count)
    png = [encode_png(np.full((4, 4, 3), level, np.uint8)) for level in (10, 20, 30)]
    raw = np.full((4, 4, 3), 40, np.uint8)
    references = [(png[0], png[1]), (png[0], png[1]), (png[1], png[0]), (), (raw, png[2]), (png[0], b"bad")]
    items = [replace(item(1), references=one) for one in references]
    backend.plan["a"] = [lambda items: [Score(float(sum(r[0, 0, 0] for r in i.reference_pixels()))) for i in items]]
    firsts = [lambda items: [Score(float(i.references[0][0, 0, 0] if i.references else 0)) for i in items]]
    backend.plan["b"] = firsts
    response = await gateway.score(ScoreRequest(tuple(items), ("a", "b")))
    assert [row["a"] for row in table(response.results)] == [30, 30, 30, 0, 70, "bad_image"]
    assert [row["b"] for row in table(response.results)] == [10, 10, 20, 0, 40, "bad_image"]
    assert sorted(decoded) == sorted([png[0], png[1], png[1], png[0], png[2], png[0], b"bad"])


async def test_decoded_pixels_over_the_limit_are_named() -> None:
    decoder = decode.Decoder(LimitSettings(max_request_pixels=1_500))
    items = [ScoreItem(np.full((10, 100, 3), level, np.uint8)) for level in range(3)]
    *decoded, failure = await decoder.decode(items, 0.0)
    decoder.close()
    assert [type(one) for one in decoded] == [ScoreItem, ScoreItem]
    assert isinstance(failure, ScoreFailure)
    assert failure.message == (
        "the images of this request decoded before this one have 2,000 pixels; the limit is 1,500 ([limits] "
        "max_request_pixels). Send fewer images in each request"
    )


async def test_too_many_pixels_are_refused_before_decoding(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = LimitSettings(max_image_pixels=10_000, max_request_pixels=30_000)
    small = Gateway(gateway.backend, {}, limits)
    files = [encode_png(np.full((100, 100, 3), level, np.uint8)) for level in range(4)]
    arrays = [np.full((100, 100, 3), level, np.uint8) for level in range(4)]
    digests = [ImageRef(one) for one in await small.put_images(files)]
    with monkeypatch.context() as patch:
        patch.setattr(small._context.decoder, "decode", None)
        for images in (files, arrays, digests):
            with pytest.raises(PayloadTooLarge, match=r"have 40000 pixels.*limit is 30000 .*max_request_pixels.*send"):
                await small.score(ScoreRequest(tuple(map(ScoreItem, images)), ("a",)))
            items = (ScoreItem(images[0], references=tuple(images[1:])),)
            with pytest.raises(PayloadTooLarge, match="have 40000 pixels, references included"):
                await small.score(ScoreRequest(items, ("a",)))
    for images in (files, arrays, digests):  # exactly the limit
        response = await small.score(ScoreRequest(tuple(map(ScoreItem, images[:3])), ("a",)))
        assert [row["a"] for row in table(response.results)] == [0.0, 1 / 255, 2 / 255]
    over = encode_png(np.zeros((100, 101, 3), np.uint8))  # never decoded; it fails alone
    response = await small.score(ScoreRequest(tuple(map(ScoreItem, (*files[:3], over))), ("a",)))
    assert [row["a"] for row in table(response.results)] == [0.0, 1 / 255, 2 / 255, "image_too_large"]
    small.close()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pixel_count_reads_the_header_alone(kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((30, 70, 3), np.uint8)).save(buffer, kind)
    assert pixel_count(buffer.getvalue()) == 2100
    assert pixel_count(buffer.getvalue()[:10]) == 0


def test_shared_references_count_once() -> None:
    file, array = encode_png(np.zeros((10, 10, 3), np.uint8)), np.zeros((10, 10, 3), np.uint8)
    for references in ((file, file), (array, array)):
        items = [ScoreItem(file, references=references)] * 3
        assert request_pixels(items, 100) == 3 * 100 + 200
    assert request_pixels([ScoreItem(file, references=(file, array))] * 3, 100) == 900  # decoded for each item
    copies = [ScoreItem(references=(array.copy(),)) for _ in range(3)]
    assert request_pixels(copies, 100) == 300


@pytest.mark.parametrize("step", [RuntimeError("secret"), lambda items: []])
async def test_wrong_number_of_outcomes_fails_that_scorer(gateway: Gateway, backend: Any, step: Any) -> None:
    backend.plan["a"] = [step]
    response = await gateway.score(ScoreRequest((item(51),), ("a", "b")))
    assert table(response.results) == [{"a": "scorer_failed", "b": 0.2}]
    assert "secret" not in str(response)


async def test_request_id_is_kept_or_generated(gateway: Gateway) -> None:
    assert (await gateway.score(ScoreRequest((item(1),), ("a",), request_id="x"))).request_id == "x"
    first, second = [(await gateway.score(ScoreRequest((item(1),), ("a",)))).request_id for _ in range(2)]
    assert first != second
