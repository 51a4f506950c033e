"""The fault benchmark's instruments, given the faults that they must detect."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from benchmarks.faults.fuzz import check
from benchmarks.faults.load import PER_REQUEST, Tally, drive, fresh
from benchmarks.faults.scorers import NUMBERS, Colour, bgr, image_of, value
from benchmarks.faults.soak import bounded, memory_figures
from synod.codec import CODECS, JSON, MSGPACK
from synod.contracts import ItemResult, Outcome, Score, ScoreFailure, ScoreItem, ScoreResponse
from synod.errors import InvalidRequest, Overloaded, SynodError, Unavailable
from synod.images import ImageLimits, decode_item

LIMITS = ImageLimits(2**20, 2**20)


class RewardService(BaseHTTPRequestHandler):
    """A service that scores each image's colour; `twist` corrupts a request's outcomes."""

    twist: Any = staticmethod(lambda outcomes: outcomes)

    def do_POST(self) -> None:
        request = MSGPACK.decode_request(self.rfile.read(int(self.headers["content-length"])))
        items = [decode_item(item, LIMITS) for item in request.items]
        outcomes: list[Outcome] = self.twist(Colour("colour").score(items))
        results = tuple(ItemResult({"colour": outcome}) for outcome in outcomes)
        body = MSGPACK.encode_response(ScoreResponse(results, request.request_id or ""))
        self.send_response(200)
        self.send_header("content-type", MSGPACK.content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), RewardService) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("twist", "found"),
    [
        (lambda o: o, {}),
        (lambda o: [*o[:-1], ScoreFailure("replica_lost", "gone")], {"lost": 1}),
        (lambda o: [o[1], o[0], *o[2:]], {"disordered": 2}),
        (lambda o: [*o[:-1], Score(0.0)], {"invented": 1}),
        (lambda o: [*o[:-1], Score(math.pi / 4)], {"invented": 1}),
        (lambda o: [*o[:-1], o[0]], {"disordered": 1, "doubled": 1}),
    ],
    ids=["right", "lost", "swapped", "zero", "another", "twice"],
)
def test_each_kind_of_wrong_answer_is_counted(
    url: str, twist: Any, found: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RewardService, "twist", staticmethod(twist))
    numbers = fresh(PER_REQUEST)
    tally = Tally()
    seen = drive(url, numbers, "colour", tally)
    wrong = {name: tally.counts()[name] for name in ("lost", "doubled", "disordered", "invented")}
    assert {name: count for name, count in wrong.items() if count} == found
    assert tally.asked == PER_REQUEST == tally.done
    assert tally.complete() == (not found)
    assert seen == {"200": 1}


def test_every_planned_call_is_made_once(url: str) -> None:
    called: list[int] = []
    numbers = fresh(40 * PER_REQUEST)
    tally = Tally()
    seen = drive(url, numbers, "colour", tally, at={8: lambda: called.append(8), 100: lambda: called.append(100)})
    assert tally.complete()
    assert sorted(called) == [8, 100]
    assert seen["200"] == 40


def test_load_continues_until_every_planned_call_returns(url: str) -> None:
    tally = Tally()
    after: list[int] = []

    def slow() -> None:
        began = tally.done
        while tally.done < began + 10 * PER_REQUEST:
            time.sleep(0.01)
        after.append(tally.done)

    drive(url, fresh(2 * PER_REQUEST), "colour", tally, at={PER_REQUEST: slow})
    assert after
    assert tally.complete()
    assert tally.asked >= 11 * PER_REQUEST


def test_images_of_a_failed_call_count_as_lost() -> None:
    tally = Tally()
    seen = drive("http://127.0.0.1:1", fresh(3), "colour", tally)
    assert (tally.lost, tally.failed["unavailable"]) == (3, 3)
    assert seen["ConnectError"] == 5


def test_images_encode_their_unique_numbers() -> None:
    numbers = fresh(1000)
    assert len(set(numbers)) == 1000
    assert all(0 <= number < NUMBERS for number in numbers)
    items = [ScoreItem(image_of(number)) for number in numbers[:50]]
    assert [o.value for o in Colour("c").score(items) if isinstance(o, Score)] == [value(n) for n in numbers[:50]]
    swapped = Colour("c", order=bgr).score(items)
    assert swapped != Colour("c").score(items)


def test_growing_memory_is_detected() -> None:
    flat = memory_figures([(float(t), 200.0 + t % 3) for t in range(300)])
    grown = memory_figures([(float(t), 200.0 + t) for t in range(300)])
    assert bounded(flat)
    assert abs(flat["slope_mib_per_hour"]) < 100
    assert not bounded(grown)
    assert grown["slope_mib_per_hour"] == pytest.approx(3600)


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (500, "text/plain", b"Internal Server Error"),
        (404, "application/json", b'{"detail":"Not Found"}'),
        (500, "application/json", JSON.encode_error(SynodError("internal error"))),
        (502, "application/json", JSON.encode_error(InvalidRequest("bad"))),
        (429, "application/json", JSON.encode_error(Overloaded("full"))),  # without Retry-After
        (200, "application/json", b"{}"),
        (200, "application/x-ndjson", b'{"request_id":"r","scored":{"index":0,"scorer":"a","outcome":{"value":1}}}\n'),
        (
            200,
            "application/json",
            JSON.encode_response(ScoreResponse((ItemResult({"a": ScoreFailure("scorer_failed", "boom")}),), "r")),
        ),
    ],
)
def test_an_untyped_or_malformed_answer_is_detected(status: int, kind: str, body: bytes) -> None:
    with pytest.raises((AssertionError, SynodError, KeyError)):
        check("/v1/score", status, {"content-type": kind}, body)


@pytest.mark.parametrize("kind", list(CODECS))
def test_a_typed_refusal_is_accepted(kind: str) -> None:
    body = CODECS[kind].encode_error(Unavailable("unavailable"))
    assert check("/v1/score", 503, {"content-type": kind, "retry-after": "1"}, body) == "/v1/score 503 unavailable"
