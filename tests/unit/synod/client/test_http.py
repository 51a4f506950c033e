"""Both clients over HTTP, against real sockets and a failing transport."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import httpx
import pytest

from synod.client import AsyncSynodClient, SynodClient
from synod.client.flows import MAX_CONCURRENT_CHUNKS
from synod.codec import JSON, MSGPACK
from synod.contracts import (
    ImageRef,
    ItemResult,
    Part,
    PutImagesResponse,
    RequestError,
    Rewards,
    Score,
    ScoredItem,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
)
from synod.digest import digest_of
from synod.errors import DeadlineExceeded, Overloaded, SynodError, Unavailable, UnknownImage, UnknownScorer
from tests.outcomes import merge_parts


@dataclass
class RewardService:
    """Score the length of a prompt, after sending `faults`: (status, content type, body), or "hang up".

    References by digest must be in `kept`, which holds the digests of uploads, if it `keeps` them.
    """

    faults: list[Any] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    barrier: threading.Barrier | None = None
    cut_stream: bool = False
    polls: int = 0
    keeps: bool = True
    kept: set[str] = field(default_factory=set)
    puts: list[tuple[str, ...]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def respond(request: ScoreRequest) -> ScoreResponse:
    results = tuple(ItemResult({"length": Score(float(len(item.prompt or "")))}) for item in request.items)
    return ScoreResponse(results, request.request_id or "")


class Handler(BaseHTTPRequestHandler):
    service: RewardService

    def do_POST(self) -> None:
        service, request = self.service, MSGPACK.decode_request(self.body())
        with service.lock:
            service.ids.append(request.request_id)
            service.at_once += 1
            service.most_at_once = max(service.most_at_once, service.at_once)
        if service.barrier is not None:
            service.barrier.wait(20)
        with service.lock:
            service.at_once -= 1
        if self.failed():
            pass
        elif unknown := self.unknown(request):
            error = UnknownImage("upload them", unknown)
            self.answer(error.http_status, MSGPACK.content_type, MSGPACK.encode_error(error))
        elif self.headers["accept"] == "application/x-ndjson":
            self.stream(request)
        else:
            self.answer(200, MSGPACK.content_type, MSGPACK.encode_response(respond(request)))

    def do_PUT(self) -> None:
        digests = tuple(map(digest_of, MSGPACK.decode_put(self.body()).images))
        self.service.puts.append(digests)
        if self.service.keeps:
            self.service.kept.update(digests)
        self.answer(200, MSGPACK.content_type, MSGPACK.encode_digests(PutImagesResponse(digests)))

    def do_GET(self) -> None:
        self.service.tokens.append(self.headers["authorization"])
        if self.path == "/v1/scorers":
            ensembles = {"both": {"weights": {"length": 1.0}}}
            catalogue = {"scorers": [{"name": "length"}], "ensembles": ensembles, "limits": {"max_items": 5}}
            self.answer(200, "application/json", json.dumps(catalogue).encode())
            return
        self.service.polls += 1
        waiting = {"scorers": {"length": {"ready": False, "reason": "loading"}}}
        self.answer(200 if self.service.polls > 2 else 503, "application/json", json.dumps(waiting).encode())

    def stream(self, request: ScoreRequest) -> None:
        if request.scorers in (("odd",), ("lost",)):
            status = 200 if request.scorers == ("odd",) else 404
            self.answer(status, "application/json", JSON.encode_error(UnknownScorer("no scorer 'lost'")))
            return
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson; charset=utf-8")
        self.end_headers()
        response = respond(request)
        parts: list[Part] = [
            ScoredItem(response.request_id, i, "length", result.scores["length"])
            for i, result in enumerate(response.results)
        ]
        if request.scorers == ("broken",):
            parts = [*parts[:1], RequestError(response.request_id, Overloaded("full", retry_after_s=3.0))]
        elif not self.service.cut_stream:
            parts.append(Rewards(response.request_id, (None,) * len(parts)))
        for part in reversed(parts[:-1]):
            self.wfile.write(JSON.encode_part(part) + b"\n\n")
        self.wfile.write(JSON.encode_part(parts[-1]))

    def unknown(self, request: ScoreRequest) -> list[str]:
        named = [one.digest for item in request.items for one in item.references if isinstance(one, ImageRef)]
        return [digest for digest in named if digest not in self.service.kept]

    def body(self) -> bytes:
        self.service.tokens.append(self.headers["authorization"])
        return self.rfile.read(int(self.headers["content-length"]))

    def failed(self) -> bool:
        fault = self.service.faults.pop(0) if self.service.faults else None
        if fault == "hang up":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault is not None:
            self.answer(*fault)
        return fault is not None

    def answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        if status == 503:
            self.send_header("retry-after", "0.25")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def service() -> RewardService:
    return RewardService()


@pytest.fixture
def url(service: RewardService) -> Iterator[str]:
    handler = type("Bound", (Handler,), {"service": service})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


Use = Callable[..., Any]  # use(method, *arguments, **client options) returns the call's result


def blocking(url: str) -> Use:
    def use(method: str, *arguments: Any, **options: Any) -> Any:
        with SynodClient(url, timeout_s=20, **options) as client:
            found = getattr(client, method)(*arguments)
            return list(found) if method == "stream" else found

    return use


def awaited(url: str) -> Use:
    def use(method: str, *arguments: Any, **options: Any) -> Any:
        async def call() -> Any:
            async with AsyncSynodClient(url, timeout_s=20, **options) as client:
                found = getattr(client, method)(*arguments)
                return [part async for part in found] if method == "stream" else await found

        return asyncio.run(call())

    return use


@pytest.fixture(params=[blocking, awaited])
def use(request: pytest.FixtureRequest, url: str) -> Use:
    made: Use = request.param(url)
    return made


def prompts(texts: Sequence[str], *scorers: str, request_id: str | None = None) -> ScoreRequest:
    return ScoreRequest(tuple(ScoreItem(prompt=text) for text in texts), scorers or ("length",), request_id=request_id)


def test_score_scorers_put_and_ready(use: Use, service: RewardService) -> None:
    assert use("score", prompts(["a", "bcd"], request_id="r")) == respond(prompts(["a", "bcd"], request_id="r"))
    assert use("values", prompts(["a", "bcd"])).scores == {"length": (1.0, 3.0)}
    assert use("scorers") == [{"name": "length"}]
    assert use("ensembles") == {"both": {"weights": {"length": 1.0}}}
    assert use("put_images", [b"cat"]) == (digest_of(b"cat"),)
    use("wait_ready", 20)
    assert service.polls == 3


def test_stream_equals_the_response_of_score(use: Use) -> None:
    request = prompts(["a", "bcd", ""], request_id="r")
    parts = use("stream", request)
    assert [part.index for part in parts[:-1]] == [2, 1, 0]
    assert merge_parts(parts, 3) == use("score", request)


@pytest.mark.parametrize(
    ("scorer", "kind", "message"),
    [
        ("lost", UnknownScorer, "^no scorer 'lost'$"),
        ("broken", Overloaded, "^full$"),
        ("odd", SynodError, "^the response is of type application/json, but application/x-ndjson was"),
    ],
)
def test_stream_raises_refusals_and_failures(use: Use, scorer: str, kind: type[SynodError], message: str) -> None:
    with pytest.raises(SynodError, match=message) as raised:
        use("stream", prompts(["a", "b"], scorer))
    assert type(raised.value) is kind


def test_truncated_stream_is_unavailable(use: Use, service: RewardService) -> None:
    service.cut_stream = True
    with pytest.raises(Unavailable, match=r"'r' ended after 2 parts, before its last; send the request again"):
        use("stream", prompts(["a", "b"], request_id="r"))


def streamed_twice(url: str, request: ScoreRequest, between: Callable[[], None]) -> list[list[Part]]:
    with SynodClient(url, timeout_s=20, by_digest=True) as client:
        first = list(client.stream(request))
        between()
        return [first, list(client.stream(request))]


def streamed_twice_awaited(url: str, request: ScoreRequest, between: Callable[[], None]) -> list[list[Part]]:
    async def call() -> list[list[Part]]:
        async with AsyncSynodClient(url, timeout_s=20, by_digest=True) as client:
            first = [part async for part in client.stream(request)]
            between()
            return [first, [part async for part in client.stream(request)]]

    return asyncio.run(call())


BY_DIGEST = ScoreRequest((ScoreItem(prompt="abc", references=(b"cat", b"dog")),), ("length",), request_id="r")
CAT_AND_DOG = (digest_of(b"cat"), digest_of(b"dog"))


@pytest.mark.parametrize("stream_twice", [streamed_twice, streamed_twice_awaited])
def test_stream_uploads_evicted_references_again(stream_twice: Any, url: str, service: RewardService) -> None:
    found = stream_twice(url, BY_DIGEST, service.kept.clear)
    assert found == [[ScoredItem("r", 0, "length", Score(3.0)), Rewards("r", (None,))]] * 2
    assert service.puts == [CAT_AND_DOG] * 2
    assert service.ids == ["r"] * 3


def test_stream_uploads_again_only_once(use: Use, service: RewardService) -> None:
    service.keeps = False
    with pytest.raises(UnknownImage, match=r"^upload them$") as raised:
        use("stream", BY_DIGEST, by_digest=True)
    assert raised.value.digests == CAT_AND_DOG
    assert service.puts == [CAT_AND_DOG] * 2


def test_stream_raises_for_an_unknown_digest_of_the_caller(use: Use, service: RewardService) -> None:
    own = ScoreItem(prompt="abc", references=(ImageRef(digest_of(b"elsewhere")), b"dog"))
    for by_digest in (True, False):
        with pytest.raises(UnknownImage, match=r"^upload them$"):
            use("stream", replace(BY_DIGEST, items=(own,)), by_digest=by_digest)
    assert service.puts == [CAT_AND_DOG[1:]]


def test_lost_response_is_retried_with_the_same_id(use: Use, service: RewardService) -> None:
    service.faults = ["hang up", (503, "text/html", b"<h1>down</h1>")]
    response = use("score", prompts(["abc"]))
    assert response.results[0].scores["length"] == Score(3.0)
    assert service.ids == [response.request_id] * 3


def test_only_foreign_5xx_responses_are_retried(use: Use, service: RewardService) -> None:
    """Serve's proxy answers 500 for a gateway that died; the service's own internal error would recur."""
    service.faults = [(500, "text/plain", b"Internal Server Error")] * 2
    response = use("score", prompts(["abc"]))
    assert response.results[0].scores["length"] == Score(3.0)
    assert service.ids == [response.request_id] * 3
    service.faults = [(500, "application/msgpack", MSGPACK.encode_error(SynodError("internal error")))]
    with pytest.raises(SynodError, match=r"^internal error$"):
        use("score", prompts(["abc"]))
    assert len(service.ids) == 4


def test_retry_after_is_read_from_the_header(use: Use, service: RewardService) -> None:
    service.faults = [(503, "text/html", b"<h1>down</h1>"), "hang up"]
    with pytest.raises(Unavailable) as raised:
        use("score", prompts(["abc"]), retries=0)
    assert raised.value.retry_after_s == 0.25
    with pytest.raises(Unavailable, match=r"the connection to http://127\.0\.0\.1:\d+ broke .*; retry"):
        use("score", prompts(["abc"]), retries=0)


def test_one_client_serves_many_threads(url: str) -> None:
    with SynodClient(url, timeout_s=20) as client, ThreadPoolExecutor(4) as pool:
        requests = [prompts(["x" * i], request_id=str(i)) for i in range(32)]
        assert list(pool.map(client.score, requests)) == list(map(respond, requests))


def test_every_call_sends_the_token_if_there_is_one(use: Use, service: RewardService) -> None:
    for method, argument in (("score", prompts(["a"])), ("put_images", [b"x"]), ("stream", prompts(["a"]))):
        use(method, argument, token="s3cret")
    use("scorers", token="s3cret")
    use("scorers")
    assert service.tokens == ["Bearer s3cret"] * 4 + [None]


def test_concurrent_chunks_are_bounded(use: Use, service: RewardService) -> None:
    """The barrier opens only for MAX_CONCURRENT_CHUNKS concurrent calls."""
    service.barrier = threading.Barrier(MAX_CONCURRENT_CHUNKS)
    texts = ["x" * i for i in range(5 * 4 * MAX_CONCURRENT_CHUNKS)]
    response = use("score", prompts(texts, request_id="r"))
    assert [result.scores["length"] for result in response.results] == [Score(float(len(text))) for text in texts]
    assert service.most_at_once == MAX_CONCURRENT_CHUNKS
    assert sorted(service.ids, key=str) == sorted((f"r/{i}" for i in range(4 * MAX_CONCURRENT_CHUNKS)), key=str)


def test_failed_chunk_fails_the_request(use: Use, service: RewardService) -> None:
    service.faults = [(404, "application/json", JSON.encode_error(UnknownScorer("no such scorer")))]
    with pytest.raises(UnknownScorer, match=r"^no such scorer$"):
        use("score", prompts(["a"] * 100))


def test_unreachable_service_is_unavailable() -> None:
    with socket.socket() as taken:  # bound, not listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for scheme in ("http", "grpc"):
            message = f"no service responds at {scheme}://{address} .*; start one, or correct the URL$"
            for connect in (blocking, awaited):
                with pytest.raises(Unavailable, match=f"^{message}"):
                    connect(f"{scheme}://{address}")("scorers", retries=0)
                with pytest.raises(Unavailable, match=rf"^not ready after 0\.1 s, waiting for: {message}"):
                    connect(f"{scheme}://{address}")("wait_ready", 0.1)


@pytest.mark.parametrize("connect", [blocking, awaited])
def test_read_timeouts_and_redirects_are_errors(connect: Callable[[str], Use]) -> None:
    def reply(request: httpx.Request) -> httpx.Response:
        assert request.headers["accept-encoding"] == "identity"
        if request.extensions["timeout"]["read"] == 5.5:
            raise httpx.ReadTimeout("", request=request)
        return httpx.Response(302, headers={"location": "http://evil"})

    use, options = connect("http://service"), {"retries": 0, "transport": httpx.MockTransport(reply)}
    with pytest.raises(SynodError, match=r"^HTTP 302"):
        use("score", prompts(["a"]), **options)
    with pytest.raises(DeadlineExceeded, match=r"did not answer /v1/score within 5\.5 s"):
        use("score", replace(prompts(["a"]), timeout_ms=500), **options)


PIECES = [bytes([byte]) for byte in b'{"scorers": [{"name": "length"}]}']


def test_a_response_that_trickles_ends_at_the_timeout() -> None:
    """Each piece comes in time, all of them do not."""

    def pieces() -> Iterator[bytes]:
        for piece in PIECES:
            time.sleep(0.02)
            yield piece

    async def awaited_pieces() -> AsyncIterator[bytes]:
        for piece in PIECES:
            await asyncio.sleep(0.02)
            yield piece

    def transport(content: Callable[[], Any]) -> httpx.MockTransport:
        return httpx.MockTransport(
            lambda request: httpx.Response(200, headers={"content-type": "application/json"}, content=content())
        )

    async def call(timeout_s: float) -> Any:
        options: dict[str, Any] = {"timeout_s": timeout_s, "retries": 0, "transport": transport(awaited_pieces)}
        async with AsyncSynodClient("http://service", **options) as client:
            return await client.scorers()

    late = r"did not answer /v1/scorers within 0\.\d+ s; allow more time"
    with (
        SynodClient("http://service", timeout_s=0.2, retries=0, transport=transport(pieces)) as client,
        pytest.raises(DeadlineExceeded, match=late),
    ):
        client.scorers()
    with pytest.raises(DeadlineExceeded, match=late):
        asyncio.run(call(0.2))
    assert asyncio.run(call(20)) == [{"name": "length"}]


@pytest.mark.parametrize("client", [SynodClient, AsyncSynodClient])
def test_grpc_reconnects_within_a_second(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own pauses grow to two minutes, so that a service that has recovered would be reported late."""
    opened: list[dict[str, Any]] = []
    for library in (grpc, grpc.aio):
        monkeypatch.setattr(library, "insecure_channel", lambda target, options: opened.append(dict(options)))
    client("grpc://service:9000")
    (options,) = opened
    assert options["grpc.initial_reconnect_backoff_ms"] <= options["grpc.max_reconnect_backoff_ms"] <= 1000
    assert options["grpc.min_reconnect_backoff_ms"] == 5000


@pytest.mark.parametrize("url", ["localhost:8000", "", "ftp://service", "grpc:service", "http://", "HTTP"])
def test_invalid_url_is_refused(url: str) -> None:
    for client in (SynodClient, AsyncSynodClient):
        with pytest.raises(ValueError, match="is not a Synod URL; give one such as http://127"):
            client(url)
