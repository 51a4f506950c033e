"""The blocking client against real sockets and a failing transport."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest

from synod.client import SynodClient
from synod.codec import CODECS, codec_for
from synod.contracts import ItemResult, Score, ScoreFailure, ScoreItem, ScoreRequest, ScoreResponse
from synod.errors import DeadlineExceeded, Overloaded, SynodError, Unavailable


class TinyService(BaseHTTPRequestHandler):
    """Score an item by the sum of its raw image; some prompts name a failure."""

    polls = 0

    def do_POST(self) -> None:
        codec = codec_for(self.headers["content-type"])
        request = codec.decode_request(self.rfile.read(int(self.headers["content-length"])))
        if request.items[0].prompt == "overload":
            self.answer(429, codec.content_type, codec.encode_error(Overloaded("the queue holds 9")))
            return
        if request.items[0].prompt == "hang up":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        results = tuple(
            ItemResult({"sum": ScoreFailure("missing_input", "no image")})
            if item.image is None
            else ItemResult({"sum": Score(float(np.asarray(item.image, np.uint8).sum()))})
            for item in request.items
        )
        self.answer(200, codec.content_type, codec.encode_response(ScoreResponse(results, request.request_id or "")))

    def do_GET(self) -> None:
        if self.path == "/v1/scorers":
            self.answer(200, "application/json", json.dumps({"scorers": [{"name": "sum"}]}).encode())
            return
        TinyService.polls += 1
        scorers = {"sum": {"ready": False, "reason": "loading"}}
        status = 200 if TinyService.polls > 2 else 503
        self.answer(status, "application/json", json.dumps({"scorers": scorers}).encode())

    def answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), TinyService) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def client(url: str) -> Iterator[SynodClient]:
    with SynodClient(url, timeout_s=20) as client:
        yield client


def test_results_keep_order_and_failures_are_values(client: SynodClient) -> None:
    images = [np.full((2, 2, 3), value, np.uint8) for value in (1, 2)]
    response = client.score(ScoreRequest((ScoreItem(images[0]), ScoreItem(), ScoreItem(images[1])), ("sum",)))
    assert [result.scores["sum"] for result in response.results] == [
        Score(12.0),
        ScoreFailure("missing_input", "no image"),
        Score(24.0),
    ]


def test_one_client_serves_many_threads(client: SynodClient) -> None:
    found: dict[int, float] = {}

    def score(value: int) -> None:
        request = ScoreRequest((ScoreItem(np.full((1, 1, 3), value, np.uint8)),), ("sum",))
        outcome = client.score(request).results[0].scores["sum"]
        assert isinstance(outcome, Score)
        found[value] = outcome.value

    threads = [threading.Thread(target=score, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {value: 3.0 * value for value in range(8)}


def test_service_error_is_raised_by_type(client: SynodClient) -> None:
    with pytest.raises(Overloaded, match=r"^the queue holds 9$"):
        client.score(ScoreRequest((ScoreItem(prompt="overload"),)))


def test_a_broken_connection_is_unavailable(client: SynodClient) -> None:
    with pytest.raises(Unavailable, match=r"the connection to http://127\.0\.0\.1:\d+ broke .*; retry"):
        client.score(ScoreRequest((ScoreItem(prompt="hang up"),)))


def test_scorers(client: SynodClient) -> None:
    assert client.scorers() == [{"name": "sum"}]


def test_wait_ready_polls_until_it_is(client: SynodClient) -> None:
    TinyService.polls = 0
    client.wait_ready(30)
    assert TinyService.polls == 3


def test_wait_ready_says_what_is_missing(client: SynodClient) -> None:
    TinyService.polls = -10_000
    with pytest.raises(Unavailable, match=r"not ready after 0\.3 s, waiting for: sum \(loading\)"):
        client.wait_ready(0.3)


def test_unreachable_address_is_unavailable() -> None:
    with socket.socket() as taken:  # bound, not listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with SynodClient(url, timeout_s=5) as client:
            with pytest.raises(Unavailable, match=f"^no service responds at {url} .*; start one, or correct the URL$"):
                client.scorers()
            with pytest.raises(Unavailable, match=r"not ready after 0\.1 s, waiting for: no service responds"):
                client.wait_ready(0.1)


def answering(reply: Callable[[httpx.Request], httpx.Response]) -> SynodClient:
    return SynodClient("http://service", retries=0, transport=httpx.MockTransport(reply))


def test_read_timeout_is_deadline_exceeded() -> None:
    def silence(request: httpx.Request) -> httpx.Response:
        assert request.extensions["timeout"]["read"] == 5.5
        raise httpx.ReadTimeout("", request=request)

    with answering(silence) as client, pytest.raises(DeadlineExceeded, match=r"did not answer /v1/score within 5\.5 s"):
        client.score(ScoreRequest((ScoreItem(),), timeout_ms=500))


def test_no_redirects_and_no_compression() -> None:
    def elsewhere(request: httpx.Request) -> httpx.Response:
        assert request.headers["accept-encoding"] == "identity"
        assert request.headers["content-type"] == "application/msgpack"
        return httpx.Response(302, headers={"location": "http://evil"})

    with answering(elsewhere) as client, pytest.raises(SynodError, match=r"^HTTP 302"):
        client.score(ScoreRequest((ScoreItem(),)))


def test_json_responses_are_decoded() -> None:
    codec = CODECS["application/json"]

    def reply(request: httpx.Request) -> httpx.Response:
        sent = CODECS["application/msgpack"].decode_request(request.content)
        body = codec.encode_response(ScoreResponse((ItemResult({}),), sent.request_id or ""))
        return httpx.Response(200, content=body, headers={"content-type": codec.content_type})

    with answering(reply) as client:
        assert client.score(ScoreRequest((ScoreItem(),))).results == (ItemResult({}),)


@pytest.mark.parametrize("url", ["localhost:8000", "", "ftp://service", "grpc:service", "http://", "HTTP"])
def test_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not a Synod URL; give one such as http://127"):
        SynodClient(url)
