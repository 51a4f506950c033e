"""The gRPC face over a real gateway with real scorers in this process, on a real loopback port."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.backends import LocalBackend, Readiness, ScorerSpec
from services.gateway import app, rpc
from services.gateway.core import Gateway
from services.gateway.rpc import RpcServer
from services.settings import EnsembleSettings, LimitSettings, ServerSettings
from synod.client import AsyncSynodClient, SynodClient
from synod.client.core import Call, joined
from synod.codec import CODECS, PROTOBUF
from synod.contracts import (
    Catalogue,
    Concept,
    Content,
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
    ScorerInfo,
)
from synod.digest import digest_of
from synod.errors import InvalidRequest, Overloaded, PayloadTooLarge, SynodError, UnknownImage, UnknownScorer
from synod.protobuf import ERROR_KEY, SERVICE

LIMITS = LimitSettings(max_body_bytes=2**20, max_items=64)
ENSEMBLES = {"council": EnsembleSettings(weights={"animal": {"mean": 0.5, "max": 0.5}})}


class Pixel:
    """Scores a picture by one number of its pixels."""

    def __init__(self, name: str) -> None:
        self.spec = ScorerSpec(name, ("image",), 0.0, 1.0, "a test", "a test")

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        take = {"mean": np.mean, "max": np.max}[self.spec.name]
        return [Score(float(take(item.pixels())) / 255) for item in items]


class PartsGateway(Gateway):
    """A gateway that streams and keeps pictures, in the plainest way; `gate` holds scorers back by name."""

    def __init__(self, backend: LocalBackend) -> None:
        super().__init__(backend, ENSEMBLES, LIMITS, ServerSettings())
        self.kept: dict[str, Content] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.dropped: list[str] = []
        self.refuse: Exception | None = None

    async def stream(self, request: ScoreRequest) -> AsyncGenerator[Part]:
        if self.refuse is not None:
            raise self.refuse
        response = await self.score(request)
        try:
            for name in request.scorers:
                if name in self.gates:
                    await self.gates[name].wait()
                for index, result in enumerate(response.results):
                    yield ScoredItem(response.request_id, index, name, result.scores[name])
        except (asyncio.CancelledError, GeneratorExit):
            self.dropped.append(response.request_id)
            raise
        yield Rewards(response.request_id, tuple(result.reward for result in response.results))

    async def put_images(self, pictures: Sequence[Content]) -> list[str]:
        self.kept.update({digest_of(picture): picture for picture in pictures})
        return [digest_of(picture) for picture in pictures]

    def scorers(self) -> Catalogue:
        infos = [ScorerInfo(s.name, s.needs, s.low, s.high, s.source, s.summary) for s in self.backend.specs.values()]
        return Catalogue(tuple(infos), {}, LIMITS.model_dump())


@pytest.fixture
async def gateway() -> AsyncIterator[PartsGateway]:
    backend = LocalBackend({name: Pixel(name) for name in ("mean", "max")})
    made = PartsGateway(backend)
    yield made
    made.close()
    await backend.close()


@pytest.fixture
async def url(gateway: PartsGateway) -> AsyncIterator[str]:
    server = RpcServer(gateway, LIMITS.max_body_bytes)
    port = await server.start("127.0.0.1:0")
    yield f"grpc://127.0.0.1:{port}"
    await server.stop()


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncSynodClient]:
    async with AsyncSynodClient(url, timeout_s=20, retries=0) as client:
        yield client


def grey(level: int) -> ScoreItem:
    return ScoreItem(np.full((2, 2, 3), level, np.uint8), concept=Concept("animal"))


BOTH = ScoreRequest((grey(51), ScoreItem(b"no picture"), grey(102)), ("max", "mean"), request_id="r")


async def test_score(client: AsyncSynodClient) -> None:
    response = await client.score(BOTH)
    assert response.request_id == "r"
    first, bad, last = response.results
    assert first.scores == {"mean": Score(0.2), "max": Score(0.2)}
    assert isinstance(bad.scores["mean"], ScoreFailure)
    assert bad.scores["mean"].code == "bad_image"
    assert last.scores["mean"] == Score(0.4)


async def test_a_stream_in_parts_makes_the_answer_of_one_call(client: AsyncSynodClient) -> None:
    request = ScoreRequest((grey(51), grey(102)), ("mean", "max"), "council", request_id="r")
    parts = [part async for part in client.stream(request)]
    assert isinstance(parts[-1], Rewards)
    assert joined(parts, 2) == await client.score(request)


async def test_a_part_comes_as_soon_as_its_scorer_ends(client: AsyncSynodClient, gateway: PartsGateway) -> None:
    gateway.gates["mean"] = asyncio.Event()
    stream = client.stream(BOTH)
    early = [await anext(stream) for _ in range(3)]
    assert {part.scorer for part in early if isinstance(part, ScoredItem)} == {"max"}
    gateway.gates["mean"].set()
    assert len([part async for part in stream]) == 4


async def test_one_stream_answers_many_requests_side_by_side(url: str, gateway: PartsGateway) -> None:
    """A request held back does not hold back its neighbours; one that is bad does not end the stream."""
    gateway.gates["mean"] = asyncio.Event()
    held = ScoreRequest((grey(51),), ("mean",), request_id="held")
    quick = ScoreRequest((grey(102),), ("max",), request_id="quick")
    wrong = ScoreRequest((grey(1),), ("lost",), request_id="wrong")
    bodies = [PROTOBUF.encode_stream_request(one) for one in (held, wrong, quick)]
    async with grpc.aio.insecure_channel(url.removeprefix("grpc://")) as channel:
        call = channel.stream_stream(f"/{SERVICE}/ScoreStream")(iter([bodies[0], b"\xff", *bodies[1:]]))
        seen: dict[str, list[Part]] = {}
        async for data in call:
            part = PROTOBUF.decode_part(data)
            seen.setdefault(part.request_id, []).append(part)
            if sum(map(len, seen.values())) == 4:
                assert "held" not in seen
                gateway.gates["mean"].set()
    assert seen["held"] == [ScoredItem("held", 0, "mean", Score(0.2)), Rewards("held", (None,))]
    assert seen["quick"] == [ScoredItem("quick", 0, "max", Score(0.4)), Rewards("quick", (None,))]
    [unknown], [unread] = seen["wrong"], seen[""]
    assert isinstance(unknown, RequestError)
    assert type(unknown.error) is UnknownScorer
    assert isinstance(unread, RequestError)
    assert type(unread.error) is InvalidRequest


async def test_more_requests_than_are_answered_at_once_are_all_answered(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "REQUESTS_AT_ONCE", 2)
    monkeypatch.setattr(rpc, "PARTS_WAITING", 1)
    bodies = [PROTOBUF.encode_stream_request(ScoreRequest((grey(i),), ("max",), request_id=str(i))) for i in range(20)]
    async with grpc.aio.insecure_channel(url.removeprefix("grpc://")) as channel:
        call = channel.stream_stream(f"/{SERVICE}/ScoreStream")(iter(bodies))
        parts = [PROTOBUF.decode_part(data) async for data in call]
    values = {p.request_id: p.outcome for p in parts if isinstance(p, ScoredItem)}
    assert values == {str(i): Score(i / 255) for i in range(20)}
    assert len(parts) == 40


async def test_a_caller_that_leaves_drops_its_work(client: AsyncSynodClient, gateway: PartsGateway) -> None:
    gateway.gates["mean"] = asyncio.Event()
    stream = client.stream(BOTH)
    await anext(stream)
    await stream.aclose()
    while not gateway.dropped:
        await asyncio.sleep(0.01)
    assert gateway.dropped == ["r"]


async def test_a_call_that_is_cancelled_drops_its_work(
    client: AsyncSynodClient, gateway: PartsGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, dropped = asyncio.Event(), asyncio.Event()

    async def endless(request: ScoreRequest) -> Any:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            dropped.set()

    monkeypatch.setattr(gateway, "score", endless)
    asking = asyncio.create_task(client.score(BOTH))
    await began.wait()
    asking.cancel()
    await dropped.wait()


async def test_all_formats_over_both_transports_give_one_answer(
    client: AsyncSynodClient, gateway: PartsGateway
) -> None:
    by_grpc = await client.score(BOTH)
    transport = httpx.ASGITransport(app.build(gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://plane") as http:
        for kind, codec in CODECS.items():
            headers = {"content-type": kind}
            answer = await http.post("/v1/score", content=codec.encode_request(BOTH), headers=headers)
            assert answer.headers["content-type"] == kind
            assert codec.decode_response(answer.content) == by_grpc


@pytest.mark.parametrize("error", [c for c in SynodError.__subclasses__() for c in (c, *c.__subclasses__())])
async def test_each_error_of_the_tree_has_its_status(
    url: str, gateway: PartsGateway, monkeypatch: pytest.MonkeyPatch, error: type[SynodError]
) -> None:
    async def refuse(request: ScoreRequest) -> Any:
        raise error("why" * 1000)

    monkeypatch.setattr(gateway, "score", refuse)
    async with grpc.aio.insecure_channel(url.removeprefix("grpc://")) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"/{SERVICE}/Score")(PROTOBUF.encode_request(BOTH))
    assert caught.value.code() is grpc.StatusCode[error.grpc_status]
    assert caught.value.details() == ("why" * 1000)[:1024]
    told = PROTOBUF.decode_error(dict(caught.value.trailing_metadata())[ERROR_KEY])
    assert (type(told), told.message) == (error, "why" * 1000)


async def test_waiting_time_and_thousands_of_digests_arrive(
    client: AsyncSynodClient, gateway: PartsGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [digest_of(str(i).encode()) for i in range(256 * 16)]
    errors = [Overloaded("full", retry_after_s=2.5), UnknownImage("upload them", digests)]

    async def refuse(request: ScoreRequest) -> Any:
        raise errors.pop(0)

    monkeypatch.setattr(gateway, "score", refuse)
    with pytest.raises(Overloaded) as full:
        await client.score(BOTH)
    assert full.value.retry_after_s == 2.5
    with pytest.raises(UnknownImage) as unknown:
        await client.score(BOTH)
    assert unknown.value.digests == tuple(digests)


@pytest.mark.parametrize("call", ["score", "stream"])
async def test_an_unexpected_error_tells_nothing_but_a_number(
    client: AsyncSynodClient,
    gateway: PartsGateway,
    caplog: pytest.LogCaptureFixture,
    call: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def explode(request: ScoreRequest) -> Any:
        raise RuntimeError("the secret")

    monkeypatch.setattr(gateway, "score", explode)
    asking = client.score(BOTH) if call == "score" else anext(client.stream(BOTH))
    with (
        caplog.at_level(logging.ERROR, "synod.gateway"),
        pytest.raises(SynodError, match=r"^internal error; quote") as e,
    ):
        await asking
    assert "the secret" in caplog.text
    assert e.value.message.split()[-1] in caplog.text


async def test_pictures_are_kept_and_named(client: AsyncSynodClient, gateway: PartsGateway) -> None:
    pictures = [b"\x89PNG", np.zeros((2, 3, 3), np.uint8)]
    digests = await client.put_images(pictures)
    assert digests == tuple(map(digest_of, pictures)) == tuple(gateway.kept)
    assert await client.put_images([]) == ()


async def test_a_picture_that_is_not_kept_fails_its_item(client: AsyncSynodClient) -> None:
    """A gateway without a store: typed, retryable, and the neighbours are scored."""
    unknown = ScoreItem(ImageRef(digest_of(b"x")))
    bad, good = (await client.score(ScoreRequest((unknown, grey(51)), ("mean",)))).results
    assert isinstance(bad.scores["mean"], ScoreFailure)
    assert (bad.scores["mean"].code, bad.scores["mean"].retryable) == ("unknown_image", True)
    assert good.scores["mean"] == Score(0.2)


async def test_scorers_and_limits(client: AsyncSynodClient) -> None:
    assert [one["name"] for one in await client.scorers()] == ["mean", "max"]


async def test_a_body_over_the_limit_never_reaches_the_gateway(
    client: AsyncSynodClient, gateway: PartsGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreachable(request: ScoreRequest) -> Any:
        pytest.fail("scored")

    monkeypatch.setattr(gateway, "score", unreachable)
    with pytest.raises(PayloadTooLarge, match=r"larger than max .*; send several requests$"):
        await client.score(ScoreRequest((ScoreItem(b"x" * (2**20 + 1)),), ("mean",)))
    with pytest.raises(PayloadTooLarge, match="more than 262144 fields"):
        await client._transport.send(Call("score", 20.0, b"\x0a\x00" * (2**18 + 1)))


async def test_more_items_than_the_limit_go_in_chunks(client: AsyncSynodClient) -> None:
    levels = [i % 256 for i in range(3 * LIMITS.max_items + 1)]
    response = await client.score(ScoreRequest(tuple(map(grey, levels)), ("max",), request_id="r"))
    assert response.request_id == "r"
    assert [result.scores["max"] for result in response.results] == [Score(level / 255) for level in levels]


async def test_health_tells_alive_from_ready(url: str, gateway: PartsGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "HEALTH_PERIOD_S", 0.01)
    response = health_pb2.HealthCheckResponse

    async def loading() -> dict[str, Readiness]:
        return {"mean": Readiness(ready=False, replicas=0, wanted=1, reason="loading")}

    async with grpc.aio.insecure_channel(url.removeprefix("grpc://")) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == response.SERVING
        monkeypatch.setattr(gateway.backend, "readiness", loading)
        assert (await watch.read()).status == response.NOT_SERVING
        alive = await stub.Check(health_pb2.HealthCheckRequest(service=""))
        assert alive.status == response.SERVING
        monkeypatch.undo()
        async with AsyncSynodClient(url) as client:
            await client.wait_ready(30)
        watch.cancel()


async def test_reflection_lists_the_services_and_describes_ours(url: str) -> None:
    request = reflection_pb2.ServerReflectionRequest
    async with grpc.aio.insecure_channel(url.removeprefix("grpc://")) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = iter([request(list_services=""), request(file_containing_symbol=SERVICE)])
        listed, described = [answer async for answer in stub.ServerReflectionInfo(asked)]
    names = {service.name for service in listed.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} == names
    assert b"PutImages" in described.file_descriptor_response.file_descriptor_proto[0]


async def test_interceptors_stand_before_every_call(gateway: PartsGateway) -> None:
    class Doorman(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            self.seen = dict(details.invocation_metadata).get("authorization")
            return await continuation(details)

    doorman = Doorman()
    server = RpcServer(gateway, LIMITS.max_body_bytes, [doorman])
    port = await server.start("127.0.0.1:0")
    async with AsyncSynodClient(f"grpc://127.0.0.1:{port}", token="s3cret") as client:
        await client.scorers()
    await server.stop()
    assert doorman.seen == "Bearer s3cret"


async def test_the_blocking_client_speaks_to_it_too(url: str) -> None:
    def use() -> None:
        with SynodClient(url, timeout_s=20) as client:
            client.wait_ready(20)
            request = ScoreRequest((grey(51), grey(102)), ("mean", "max"), "council", request_id="r")
            assert joined(client.stream(request), 2) == client.score(request)
            assert client.put_images([b"x"]) == (digest_of(b"x"),)
            with pytest.raises(UnknownScorer, match="no scorer 'lost' here"):
                client.score(ScoreRequest((grey(1),), ("lost",)))

    await asyncio.to_thread(use)
