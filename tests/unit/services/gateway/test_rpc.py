"""gRPC on a loopback port, with a real gateway and scorers in this process."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.backends import LocalBackend, Readiness, ScorerSpec, Staged
from services.gateway import app, auth, core, rpc, rpc_server
from services.gateway.core import Gateway
from services.gateway.quota import Caller
from services.gateway.rpc import RewardServicer
from services.gateway.rpc_server import RpcServer
from services.gateway.store import MemoryStore
from services.settings import AuthSettings, EnsembleSettings, LimitSettings
from synod.client import AsyncSynodClient, SynodClient
from synod.client.core import Call
from synod.codec import CODECS, PROTOBUF
from synod.contracts import (
    Concept,
    ImageRef,
    Outcome,
    Part,
    RequestError,
    Rewards,
    Score,
    ScoredItem,
    ScoreFailure,
    ScoreItem,
    ScoreRequest,
)
from synod.digest import digest_of
from synod.errors import (
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    SynodError,
    Unauthenticated,
    Unavailable,
    UnknownImage,
    UnknownScorer,
)
from synod.images import encode_png
from synod.protobuf import ERROR_KEY, SERVICE
from tests.outcomes import merge_parts, value, values
from tests.unit.services.gateway.conftest import Refuse

LIMITS = LimitSettings(max_body_bytes=2**20, max_items=64)
ENSEMBLES = {"council": EnsembleSettings(by_kind={"animal": {"mean": 0.5, "max": 0.5}})}


class Pixel:
    """Scores an image by the mean or the maximum of its pixels."""

    def __init__(self, name: str) -> None:
        self.spec = ScorerSpec(name, ("image",), 0.0, 1.0, "a test", "a test")

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        take = {"mean": np.mean, "max": np.max}[self.spec.name]
        return [Score(float(take(item.pixels())) / 255) for item in items]


class HeldBackend(LocalBackend):
    """`gates` block scorers by name."""

    def __init__(self) -> None:
        super().__init__({name: Pixel(name) for name in ("mean", "max")})
        self.gates: dict[str, asyncio.Event] = {}

    async def score(self, scorer: str, staged: Staged, indexes: Sequence[int], timeout_s: float) -> list[Outcome]:
        if scorer in self.gates:
            await self.gates[scorer].wait()
        return await super().score(scorer, staged, indexes, timeout_s)


@pytest.fixture
async def backend() -> AsyncIterator[HeldBackend]:
    backend = HeldBackend()
    yield backend
    await backend.close()


@pytest.fixture
def gateway(backend: HeldBackend) -> Iterator[Gateway]:
    made = Gateway(backend, ENSEMBLES, LIMITS)
    yield made
    made.close()


@pytest.fixture
async def url(gateway: Gateway) -> AsyncIterator[str]:
    server = RpcServer(gateway, LIMITS.max_body_bytes)
    port = await server.start("127.0.0.1:0")
    yield f"grpc://127.0.0.1:{port}"
    await server.stop()


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncSynodClient]:
    async with AsyncSynodClient(url, timeout_s=20, retries=0) as client:
        yield client


@pytest.fixture
async def channel(url: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(url.removeprefix("grpc://")) as channel:
        yield channel


def score_call(channel: grpc.aio.Channel, body: bytes) -> Any:
    return channel.unary_unary(f"/{SERVICE}/Score")(body)


def grey(level: int) -> ScoreItem:
    return ScoreItem(np.full((2, 2, 3), level, np.uint8), concept=Concept("animal"))


class Aborted(Exception):
    """A context that records how a call was aborted."""

    code: grpc.StatusCode
    details: str
    metadata: tuple[tuple[str, Any], ...]

    async def abort(self, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, Any], ...]) -> None:
        self.code, self.details, self.metadata = code, details, metadata
        raise self

    def bytes_on_the_wire(self) -> int:
        """Return the size as HTTP/2 counts it: 32 bytes per field, base64 bytes, the message percent-encoded."""
        fields = [(key, b64encode(v) if isinstance(v, bytes) else v) for key, v in self.metadata]
        message = quote(self.details, safe="")
        return sum(32 + len(key) + len(value) for key, value in (*fields, ("grpc-message", message)))


BOTH = ScoreRequest((grey(51), ScoreItem(b"no image"), grey(102)), ("max", "mean"), request_id="r")


async def test_part_arrives_as_soon_as_its_scorer_ends(client: AsyncSynodClient, backend: HeldBackend) -> None:
    backend.gates["mean"] = asyncio.Event()
    stream = client.stream(BOTH)
    early = [await anext(stream) for _ in range(4)]
    known = {(part.scorer, part.index) for part in early if isinstance(part, ScoredItem)}
    assert known == {("max", 0), ("max", 1), ("max", 2), ("mean", 1)}
    backend.gates["mean"].set()
    assert len([part async for part in stream]) == 3


def score_stream(channel: grpc.aio.Channel, bodies: Sequence[bytes]) -> Any:
    return channel.stream_stream(f"/{SERVICE}/ScoreStream")(iter(bodies))


async def test_requests_of_a_stream_are_scored_concurrently(channel: grpc.aio.Channel, backend: HeldBackend) -> None:
    """A blocked request does not block others; an invalid one does not end the stream."""
    backend.gates["mean"] = asyncio.Event()
    held = ScoreRequest((grey(51),), ("mean",), request_id="held")
    quick = ScoreRequest((grey(102),), ("max",), request_id="quick")
    wrong = ScoreRequest((grey(1),), ("lost",), request_id="wrong")
    bodies = [PROTOBUF.encode_stream_request(one) for one in (held, wrong, quick)]
    seen: dict[str, list[Part]] = {}
    async for data in score_stream(channel, [bodies[0], b"\xff", *bodies[1:]]):
        part = PROTOBUF.decode_part(data)
        seen.setdefault(part.request_id, []).append(part)
        if sum(map(len, seen.values())) == 4:
            assert "held" not in seen
            backend.gates["mean"].set()
    assert seen["held"] == [ScoredItem("held", 0, "mean", Score(0.2)), Rewards("held", (None,))]
    assert seen["quick"] == [ScoredItem("quick", 0, "max", Score(0.4)), Rewards("quick", (None,))]
    [unknown], [unread] = seen["wrong"], seen[""]
    assert isinstance(unknown, RequestError)
    assert type(unknown.error) is UnknownScorer
    assert isinstance(unread, RequestError)
    assert type(unread.error) is InvalidRequest


async def test_requests_beyond_the_concurrency_are_all_scored(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "CONCURRENT_REQUESTS", 2)
    monkeypatch.setattr(rpc, "BUFFERED_PARTS", 1)
    bodies = [PROTOBUF.encode_stream_request(ScoreRequest((grey(i),), ("max",), request_id=str(i))) for i in range(20)]
    parts = [PROTOBUF.decode_part(data) async for data in score_stream(channel, bodies)]
    found = {p.request_id: p.outcome for p in parts if isinstance(p, ScoredItem)}
    assert found == {str(i): Score(i / 255) for i in range(20)}
    assert len(parts) == 40


async def test_all_formats_and_transports_give_equal_responses(client: AsyncSynodClient, gateway: Gateway) -> None:
    by_grpc = await client.score(BOTH)
    assert by_grpc.request_id == "r"
    assert by_grpc.results[0].scores == {"mean": Score(0.2), "max": Score(0.2)}
    assert values(one.scores["mean"] for one in by_grpc.results) == [0.2, "bad_image", 0.4]
    transport = httpx.ASGITransport(app.build(gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
        for kind, codec in CODECS.items():
            headers = {"content-type": kind}
            answer = await http.post("/v1/score", content=codec.encode_request(BOTH), headers=headers)
            assert answer.headers["content-type"] == kind
            assert codec.decode_response(answer.content) == by_grpc


@pytest.mark.parametrize("error", [c for c in SynodError.__subclasses__() for c in (c, *c.__subclasses__())])
async def test_each_error_of_the_tree_has_its_status(
    channel: grpc.aio.Channel, refuse: Refuse, error: type[SynodError]
) -> None:
    refuse(error("why" * 1000))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await score_call(channel, PROTOBUF.encode_request(BOTH))
    assert caught.value.code() is grpc.StatusCode[error.grpc_status]
    assert caught.value.details() == ("why" * 1000)[:1024]
    received = PROTOBUF.decode_error(dict(caught.value.trailing_metadata())[ERROR_KEY])
    assert (type(received), received.message) == (error, "why" * 1000)


async def test_error_carries_retry_after_and_first_digests(client: AsyncSynodClient, refuse: Refuse) -> None:
    digests = [digest_of(str(i).encode()) for i in range(256 * 16)]
    refuse(Overloaded("full", retry_after_s=2.5))
    with pytest.raises(Overloaded) as full:
        await client.score(BOTH)
    assert full.value.retry_after_s == 2.5
    refuse(UnknownImage("upload them", digests))
    with pytest.raises(UnknownImage) as unknown:
        await client.score(BOTH)
    named = unknown.value.digests
    assert 0 < len(named) == rpc.MAX_DIGESTS
    assert named == tuple(digests[: len(named)])
    assert f"{len(digests) - len(named)} more digests" in unknown.value.message


@pytest.mark.parametrize("count", [1, 24, 25, 40, 60, 120, 1000])
async def test_stock_client_receives_unknown_image_errors(channel: grpc.aio.Channel, count: int) -> None:
    """gRPC enforces its limit of 8 KiB only at random below 16 KiB, so the size is checked too."""
    digests = [digest_of(str(i).encode()) for i in range(count)]
    request = ScoreRequest(tuple(ScoreItem(ImageRef(digest), "a") for digest in digests[:64]), ("mean",))
    context = Aborted()
    with pytest.raises(Aborted):
        await rpc.abort(context, UnknownImage(f"{count} are not here: {', '.join(digests)}; PUT them", digests))
    assert context.code is grpc.StatusCode.FAILED_PRECONDITION
    assert context.bytes_on_the_wire() < 8000
    error = PROTOBUF.decode_error(context.metadata[0][1])
    assert isinstance(error, UnknownImage)
    assert (len(error.digests) == count) is (count <= 24)
    assert error.message.startswith(f"{count} are not here: ")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await score_call(channel, PROTOBUF.encode_request(request))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("letter", ["x", "%", "\n", "é", "\U0001f600"])
async def test_long_messages_are_cut_to_fit(letter: str) -> None:
    context = Aborted()
    with pytest.raises(Aborted):
        await rpc.abort(context, UnknownScorer(letter * 5000))
    assert context.code is grpc.StatusCode.NOT_FOUND
    assert context.bytes_on_the_wire() < 8000
    assert isinstance(PROTOBUF.decode_error(context.metadata[0][1]), UnknownScorer)


async def test_keepalive_every_second_is_accepted(url: str, backend: HeldBackend) -> None:
    """With gRPC's defaults the server ends this call after 4 to 6 s ("too_many_pings")."""
    backend.gates["mean"] = asyncio.Event()
    options = [
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    async with grpc.aio.insecure_channel(url.removeprefix("grpc://"), options=options) as channel:
        call = score_call(channel, PROTOBUF.encode_request(BOTH))
        await asyncio.sleep(7)
        backend.gates["mean"].set()
        response = PROTOBUF.decode_response(await call)
    assert len(response.results) == 3


@pytest.mark.parametrize("call", ["score", "stream"])
async def test_unexpected_error_reveals_only_the_request_id(
    client: AsyncSynodClient, caplog: pytest.LogCaptureFixture, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def explode(items: Sequence[ScoreItem], store: Any) -> Any:
        raise RuntimeError("the secret")

    monkeypatch.setattr(core, "resolve_digests", explode)
    asking = client.score(BOTH) if call == "score" else anext(client.stream(BOTH))
    with (
        caplog.at_level(logging.ERROR, "synod.gateway"),
        pytest.raises(SynodError, match=r"^internal error; report request id r to"),
    ):
        await asking
    assert "request r failed" in caplog.text
    assert "the secret" in caplog.text


async def test_stored_images_are_scored_and_missing_ones_named(client: AsyncSynodClient) -> None:
    image = np.full((2, 3, 3), 51, np.uint8)
    digests = await client.put_images([b"\x89PNG", image])
    assert digests == (digest_of(b"\x89PNG"), digest_of(image))
    assert await client.put_images([]) == ()
    bad, good = (await client.score(ScoreRequest(tuple(ScoreItem(ImageRef(d)) for d in digests), ("mean",)))).results
    assert isinstance(bad.scores["mean"], ScoreFailure)
    assert good.scores["mean"] == Score(0.2)
    unknown = digest_of(b"x")
    with pytest.raises(UnknownImage) as refused:
        await client.score(ScoreRequest((ScoreItem(ImageRef(unknown)), grey(51)), ("mean",)))
    assert refused.value.digests == (unknown,)


async def test_oversized_body_never_reaches_the_gateway(client: AsyncSynodClient, refuse: Refuse) -> None:
    refuse(AssertionError("scored"))
    with pytest.raises(PayloadTooLarge, match=r"larger than max .*; send fewer items in a request$"):
        await client.score(ScoreRequest((ScoreItem(b"x" * (2**20 + 1)),), ("mean",)))
    with pytest.raises(PayloadTooLarge, match="more than 262144 fields"):
        await client._transport.send(Call("score", 20.0, b"\x0a\x00" * (2**18 + 1)))


async def test_compressed_message_is_refused_unread(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """It relies on options of gRPC's core alone: run it first after an upgrade of grpcio."""
    received: list[bytes] = []

    async def accept(servicer: RewardServicer, body: bytes, context: Any) -> bytes:
        received.append(body)
        return b"accepted"

    monkeypatch.setattr(RewardServicer, "score", accept)
    server = RpcServer(gateway, LIMITS.max_body_bytes)
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        score = channel.unary_unary(f"/{SERVICE}/Score")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await score(bytes(LIMITS.max_body_bytes // 2), compression=grpc.Compression.Gzip)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert received == []
        assert await score(b"plain") == b"accepted"
    await server.stop()


async def test_deadline_of_a_call_bounds_its_timeout(channel: grpc.aio.Channel, backend: HeldBackend) -> None:
    backend.gates["mean"] = asyncio.Event()
    request = ScoreRequest((grey(51),), ("max", "mean"), request_id="r")
    unary, stream = channel.unary_unary(f"/{SERVICE}/Score"), channel.stream_stream(f"/{SERVICE}/ScoreStream")
    [result] = PROTOBUF.decode_response(await unary(PROTOBUF.encode_request(request), timeout=1)).results
    assert {name: value(one) for name, one in result.scores.items()} == {"max": 0.2, "mean": "deadline_exceeded"}
    bodies = iter([PROTOBUF.encode_stream_request(replace(request, timeout_ms=60_000))])
    parts = [PROTOBUF.decode_part(data) async for data in stream(bodies, timeout=1)]
    found = {part.scorer: value(part.outcome) for part in parts if isinstance(part, ScoredItem)}
    assert found == {"max": 0.2, "mean": "deadline_exceeded"}


async def test_long_request_id_is_refused(client: AsyncSynodClient) -> None:
    request = ScoreRequest((grey(51),), ("mean",), request_id="r" * 257)
    for asking in (client.score(request), anext(client.stream(request))):
        with pytest.raises(PayloadTooLarge, match=r"^request_id has 257 characters; the limit is 256"):
            await asking


async def test_stream_uploads_evicted_references_again(url: str, gateway: Gateway) -> None:
    store = gateway._context.store
    assert isinstance(store, MemoryStore)
    reference = encode_png(np.zeros((2, 2, 3), np.uint8))
    request = ScoreRequest((replace(grey(51), references=(reference,)),), ("mean",), request_id="r")
    async with AsyncSynodClient(url, timeout_s=20, retries=0, by_digest=True) as client:
        for _ in range(2):
            parts = [part async for part in client.stream(request)]
            assert parts == [ScoredItem("r", 0, "mean", Score(0.2)), Rewards("r", (None,))]
            assert list(store._images) == [digest_of(reference)]
            store._images.clear()


async def test_health_distinguishes_alive_from_ready(
    channel: grpc.aio.Channel, client: AsyncSynodClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc_server, "HEALTH_PERIOD_S", 0.01)
    response = health_pb2.HealthCheckResponse

    async def loading() -> dict[str, Readiness]:
        return {"mean": Readiness(ready=False, replicas=0, wanted=1, reason="loading")}

    stub = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert (await watch.read()).status == response.SERVING
    monkeypatch.setattr(gateway.backend, "readiness", loading)
    assert (await watch.read()).status == response.NOT_SERVING
    alive = await stub.Check(health_pb2.HealthCheckRequest(service=""))
    assert alive.status == response.SERVING
    monkeypatch.undo()
    await client.wait_ready(30)
    watch.cancel()


async def test_reflection_describes_the_service(channel: grpc.aio.Channel) -> None:
    request = reflection_pb2.ServerReflectionRequest
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = iter([request(list_services=""), request(file_containing_symbol=SERVICE)])
    listed, described = [answer async for answer in stub.ServerReflectionInfo(asked)]
    names = {service.name for service in listed.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} == names
    assert b"PutImages" in described.file_descriptor_response.file_descriptor_proto[0]


async def test_calls_need_a_token(gateway: Gateway) -> None:
    token = "a-token-that-is-long-enough"
    authenticator = auth.load(AuthSettings(tokens_env="T"), {"T": f'[run]\ntoken = "{token}"\nmax_images = 1\n'})
    server = RpcServer(gateway, LIMITS.max_body_bytes, authenticator)
    url = f"grpc://127.0.0.1:{await server.start('127.0.0.1:0')}"
    async with AsyncSynodClient(url, token=token, retries=0) as client:
        assert (await client.score(ScoreRequest((grey(51),), ("mean",)))).results[0].scores["mean"] == Score(0.2)
        with pytest.raises(PayloadTooLarge, match="run"):  # the message names the caller
            await client.score(ScoreRequest((grey(51), grey(52)), ("mean",)))
    async with AsyncSynodClient(url, token="another-token-of-that-length", retries=0) as client:
        one = ScoreRequest((grey(51),), ("mean",))
        for asking in (client.score(one), anext(client.stream(one)), client.scorers(), client.put_images([b"x"])):
            with pytest.raises(Unauthenticated):
                await asking
    await server.stop()


@pytest.mark.parametrize("method", ["Score", "PutImages", "ScoreStream"])
async def test_token_is_checked_before_the_body_is_received(gateway: Gateway, method: str) -> None:
    """The calls send their metadata and never a message."""
    authenticator = auth.load(AuthSettings(tokens_env="T"), {"T": '[run]\ntoken = "a-token-that-is-long-enough"\n'})
    server = RpcServer(gateway, LIMITS.max_body_bytes, authenticator)
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(20):
        for metadata in ((), (("authorization", "Bearer another-token-of-that-length"),)):
            call = channel.stream_stream(f"/{SERVICE}/{method}")(metadata=metadata)
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
            assert isinstance(PROTOBUF.decode_error(dict(await call.trailing_metadata())[ERROR_KEY]), Unauthenticated)
        unknown = channel.stream_stream(f"/{SERVICE}/Nothing")()
        assert await unknown.code() is grpc.StatusCode.UNIMPLEMENTED
        health_check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=""))
        assert (await health_check).status == health_pb2.HealthCheckResponse.SERVING
    await server.stop()


async def test_calls_beyond_the_limit_fail_as_overloaded(
    gateway: Gateway, backend: HeldBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc_server, "MAX_CALLS", 1)
    server = RpcServer(gateway, LIMITS.max_body_bytes)
    url = f"grpc://127.0.0.1:{await server.start('127.0.0.1:0')}"
    backend.gates["mean"] = gate = asyncio.Event()
    async with AsyncSynodClient(url, timeout_s=20, retries=0) as client:
        held = asyncio.create_task(client.score(ScoreRequest((grey(51),), ("mean",))))
        while not gate._waiters:
            await asyncio.sleep(0.01)
        with pytest.raises(Overloaded, match="limit exceeded"):
            await client.score(ScoreRequest((grey(51),), ("max",)))
        gate.set()
        assert (await held).results[0].scores["mean"] == Score(0.2)
    await server.stop()


async def test_blocking_client_works(url: str) -> None:
    def use() -> None:
        with SynodClient(url, timeout_s=20) as client:
            client.wait_ready(20)
            assert [one["name"] for one in client.scorers()] == ["mean", "max"]
            assert client.ensembles()["council"]["by_kind"] == {"animal": {"mean": 0.5, "max": 0.5}}
            request = ScoreRequest((grey(51), grey(102)), ("mean", "max"), "council", request_id="r")
            assert merge_parts(client.stream(request), 2) == client.score(request)
            assert client.put_images([b"x"]) == (digest_of(b"x"),)
            with pytest.raises(UnknownScorer, match="unknown scorer 'lost'"):
                client.score(ScoreRequest((grey(1),), ("lost",)))

    await asyncio.to_thread(use)


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
async def test_only_foreign_internal_status_is_retried(
    code: grpc.StatusCode, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy ends the calls of a gateway that died: retry. The service's own internal error would recur."""
    score, ids = gateway.score, list[str | None]()
    faults = [True, True, False]

    async def counted(request: ScoreRequest, caller: Caller) -> Any:
        ids.append(request.request_id)
        return await score(request, caller)

    async def dying(servicer: RewardServicer, body: bytes, context: Any) -> bytes:
        if faults.pop(0):
            await context.abort(code, "the replica died")
        return await servicer_score(servicer, body, context)

    servicer_score = RewardServicer.score
    monkeypatch.setattr(gateway, "score", counted)
    monkeypatch.setattr(RewardServicer, "score", dying)
    server = RpcServer(gateway, LIMITS.max_body_bytes)
    url = f"grpc://127.0.0.1:{await server.start('127.0.0.1:0')}"
    async with AsyncSynodClient(url, timeout_s=20) as client:
        response = await client.score(ScoreRequest((grey(51),), ("mean",)))
        assert response.results[0].scores["mean"] == Score(0.2)
        assert ids == [response.request_id]
        faults.append(False)
        monkeypatch.setattr(gateway, "score", RuntimeError)
        with pytest.raises(SynodError, match="internal error; report request id") as raised:
            await client.score(ScoreRequest((grey(51),), ("mean",)))
        assert not isinstance(raised.value, Unavailable)
    await server.stop()
