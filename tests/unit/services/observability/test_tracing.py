"""Traces of a gateway with real replicas in this process, as a real collector receives them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from services.backends import Loaded, Readiness, ScorerSpec, Staged
from services.cluster.hosted_scorer import HostedScorer
from services.cluster.local import free_port
from services.gateway import app, auth, core
from services.gateway.core import Gateway
from services.gateway.ports import Ports, serving
from services.gateway.store import MemoryStore
from services.observability import tracing
from services.scorers.ber import BerSettings
from services.settings import AuthSettings, LimitSettings, TracingSettings, load
from services.settings_types import ServingSettings
from synod.client import SynodClient
from synod.codec import CODECS, PROTOBUF
from synod.contracts import Origin, Outcome, Score, ScoreFailure, ScoreItem, ScoreRequest
from synod.errors import ReplicaLost, SettingsError
from synod.protobuf import SERVICE
from tests.collector import Collector, collecting

JSON = CODECS["application/json"]
TOKEN = "a-very-secret-token-0123456789"
PROMPT = "a secret prompt"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
SERVER, CLIENT = 2, 3  # opentelemetry.proto.trace.v1.Span.SpanKind
SPEC = ScorerSpec("number", ("image",), 0.0, 1.0, "a test", "a test", Origin("m", "p"))
ITEM = ScoreItem(np.full((2, 2, 3), 1, np.uint8), PROMPT)


class Number:
    """Scores the first sample / 255 and raises for 13. `seen` are the batch sizes."""

    spec = SPEC

    def __init__(self) -> None:
        self.seen: list[int] = []

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        self.seen.append(len(items))
        levels = [int(item.pixels()[0, 0, 0]) for item in items]
        if 13 in levels:
            raise ValueError("thirteen")
        return [Score(level / 255) for level in levels]


class Replicas:
    """A backend of one replica. `received` are the traceparents of its calls, `plan` what the first calls raise."""

    specs: Mapping[str, ScorerSpec] = {"number": SPEC}

    def __init__(self, full: int = 1, wait_ms: float = 0.0, plan: Sequence[Exception] = ()) -> None:
        self.received: list[str | None] = []
        self.plan, self.scorer = list(plan), Number()
        serving = ServingSettings(max_batch_images=full, batch_wait_ms=wait_ms)
        settings = BerSettings(kind="ber", model="/tmp", serving=serving)
        self.replica = HostedScorer(SPEC, settings, None, lambda name, settings: self.scorer)

    async def stage(self, items: tuple[ScoreItem, ...], scorers: int) -> Staged:
        return Staged(items)

    async def score(self, scorer: str, staged: Staged, indexes: Sequence[int], timeout_s: float) -> list[Outcome]:
        self.received.append(tracing.current().traceparent)
        if self.plan:
            raise self.plan.pop(0)
        return await self.replica.score(staged.items, indexes, timeout_s)

    async def loaded(self) -> Mapping[str, Loaded]:
        return {"number": self.replica.loaded}

    async def readiness(self) -> Mapping[str, Readiness]:
        return {"number": Readiness(True, 1, 1)}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a collector that responds, however busy the machine is."""
    monkeypatch.setattr(tracing, "STOP_TIMEOUT_S", 60.0)


@contextmanager
def traced(**settings: Any) -> Iterator[Collector]:
    """Trace to a real collector inside the block; the spans are there after the block or after `tracing.stop`."""
    with collecting() as collector:
        tracing.start(TracingSettings(endpoint=f"{collector.url}/", **settings), "a-test")
        try:
            yield collector
        finally:
            tracing.stop()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with traced() as collector:
        yield collector


@asynccontextmanager
async def http(backend: Any, guarded: bool = False, keeps: int = 0) -> AsyncIterator[httpx.AsyncClient]:
    gateway = Gateway(backend, {}, LimitSettings(), store=MemoryStore(2**20, keeps))
    tokens = f'[run-7]\ntoken = "{TOKEN}"\n'
    authenticator = auth.load(AuthSettings(tokens_env="T"), {"T": tokens}) if guarded else None
    transport = httpx.ASGITransport(app.build(gateway, authenticator))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client
    gateway.close()


def body(*levels: int, **fields: Any) -> bytes:
    items = tuple(ScoreItem(np.full((2, 2, 3), level, np.uint8), PROMPT) for level in levels)
    return JSON.encode_request(ScoreRequest(items, ("number",), **fields))


async def post(client: httpx.AsyncClient, sent: bytes, traceparent: str | None = None, **more: str) -> httpx.Response:
    headers = {"content-type": "application/json", **more, **({"traceparent": traceparent} if traceparent else {})}
    return await client.post("/v1/score", content=sent, headers=headers)


async def ask(backend: Replicas, *sent: bytes, traceparent: str | None = None) -> list[httpx.Response]:
    """Post bodies at the same time, and export the spans."""
    async with http(backend) as client:
        answers = await asyncio.gather(*(post(client, one, traceparent) for one in sent))
    tracing.stop()
    return answers


async def test_one_trace_spans_gateway_and_replica(collector: Collector) -> None:
    async with http(Replicas(full=8), guarded=True) as client:
        answer = await post(client, body(51, 102, request_id="r-1"), SAMPLED, authorization=f"Bearer {TOKEN}")
    assert answer.headers["x-synod-trace-id"] == TRACE
    tracing.stop()
    replica_spans = {"replica number": {"wait": {}, "batch number": {}, "device": {}}}
    scorer_spans = {"scorer number": {"queue": {}, "call": replica_spans}}
    assert collector.tree(SPAN) == {"POST /v1/score": {"decode": {}, **scorer_spans}}
    assert {(span.trace, span.service) for span in collector.spans} == {(TRACE, "a-test")}
    root, call, replica, batch = map(collector.one, ("POST /v1/score", "call", "replica number", "batch number"))
    request = {"request_id": "r-1", "caller": "run-7", "scorers": ["number"], "ensemble": "", "items": 2, "known": 0}
    assert root.attributes == {f"synod.{name}": value for name, value in (request | {"outcome": "ok"}).items()}
    assert collector.one("scorer number").attributes == {"synod.items": 2, "synod.outcome": "ok"}
    assert replica.attributes == {"synod.items": 2, "synod.images": 2}
    assert batch.attributes == {"synod.items": 2, "synod.images": 2, "synod.fill": 0.25}
    assert (root.kind, call.kind, replica.kind) == (SERVER, CLIENT, SERVER)
    assert not any(span.failed for span in collector.spans)
    for span in collector.spans:
        above = [one for one in collector.spans if one.id == span.parent]
        assert all(one.start_ns <= span.start_ns <= span.end_ns <= one.end_ns for one in above), span
    everything = b"".join(collector.bodies)
    assert b"r-1" in everything
    assert not any(secret in everything for secret in (TOKEN.encode(), PROMPT.encode(), b"[[["))


async def test_batch_links_to_all_its_calls(collector: Collector) -> None:
    """Three images fill the batch, so that it holds both requests."""
    answers = await ask(Replicas(full=3, wait_ms=60_000), body(1), body(2, 3))
    replicas, devices = collector.named("replica number"), collector.named("device")
    batch = collector.one("batch number")
    assert batch.attributes == {"synod.items": 3, "synod.images": 3, "synod.fill": 1.0}
    assert len(replicas) == 2
    assert sorted(batch.links) == sorted(span.id for span in replicas) == sorted(span.parent for span in devices)
    assert batch.parent in batch.links
    assert all(span.links == (batch.id,) for span in devices)
    assert {span.trace for span in devices} == {answer.headers["x-synod-trace-id"] for answer in answers}
    assert all(wait.end_ns <= batch.start_ns for wait in collector.named("wait"))


async def test_failed_batch_marks_batch_and_scorer_spans(collector: Collector) -> None:
    (answer,) = await ask(Replicas(full=2), body(1, 13, 2))
    assert isinstance(JSON.decode_response(answer.content).results[1].scores["number"], ScoreFailure)
    batches = [(span.failed, span.attributes["synod.fill"]) for span in collector.named("batch number")]
    assert batches[:3] == [(True, 1.0), (False, 0.5), (True, 0.5)]
    scorer = collector.one("scorer number")
    assert (scorer.attributes["synod.outcome"], scorer.failed) == ("scorer_failed", True)
    assert (collector.one("POST /v1/score").failed, collector.one("decode").failed) == (False, False)


async def test_finished_call_is_not_linked_by_later_batches(collector: Collector) -> None:
    backend = Replicas()
    for traceparent in (SAMPLED, UNSAMPLED, None):
        with tracing.use_span(tracing.Span(traceparent)):
            await backend.replica.score((ITEM,), [0], 10.0)
    tracing.stop()
    assert backend.scorer.seen == [1, 1, 1]
    assert len(collector.named("batch number")) == len(collector.named("replica number")) == 1


async def test_call_that_never_runs_has_only_a_wait_span(collector: Collector) -> None:
    await ask(Replicas(full=8, wait_ms=60_000), body(1, timeout_ms=200))
    assert collector.tree(collector.one("replica number").id) == {"wait": {}}
    assert collector.one("scorer number").attributes["synod.outcome"] == "deadline_exceeded"


async def test_uploads_are_traced_and_gets_are_not(collector: Collector) -> None:
    async with http(Replicas()) as client:
        put = await client.put("/v1/images", json={"images": ["/9j/"]})
        untraced = [await client.get(path) for path in ("/v1/scorers", "/healthz", "/metrics")]
    tracing.stop()
    assert all("x-synod-trace-id" not in one.headers for one in untraced)
    (span,) = collector.spans
    assert (span.name, span.attributes["synod.items"]) == ("PUT /v1/images", 1)
    assert span.trace == put.headers["x-synod-trace-id"]


async def test_internal_error_marks_the_span_and_logs_the_trace(
    collector: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "validate", lambda *arguments: 1 / 0)
    refused, broken = await ask(Replicas(), b"{}", body(1))
    failed = {span.trace: span.failed for span in collector.spans}
    assert failed == {refused.headers["x-synod-trace-id"]: False, broken.headers["x-synod-trace-id"]: True}
    assert broken.headers["x-synod-trace-id"] in caplog.text


async def test_retries_are_events_of_the_call(collector: Collector) -> None:
    backend = Replicas(plan=[ReplicaLost("gone"), ReplicaLost("gone")])
    await ask(backend, body(1))
    call = collector.one("call")
    assert call.events == (("retry", {"synod.items": 1}),) * 2
    assert [one and one[:-3] for one in backend.received] == [f"00-{call.trace}-{call.id}"] * 3


async def test_cached_scores_have_no_call_and_shared_ones_a_span(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third request, which completes the batch, is sent when the second waits for the first."""
    waits, wait = asyncio.Event(), MemoryStore.wait
    monkeypatch.setattr(MemoryStore, "wait", lambda *given: waits.set() or wait(*given))
    async with http(Replicas(full=2, wait_ms=60_000), keeps=8) as client:
        equal = asyncio.gather(post(client, body(1)), post(client, body(1)))
        await waits.wait()
        await asyncio.gather(equal, post(client, body(2)))
        await post(client, body(1))
    tracing.stop()
    assert [span.attributes["synod.known"] for span in collector.named("POST /v1/score")] == [0, 0, 0, 1]
    counts = {name: len(collector.named(name)) for name in ("call", "shared", "scorer number")}
    assert counts == {"call": 2, "shared": 1, "scorer number": 3}


@pytest.mark.parametrize(
    ("ratio", "traceparent", "sent"),
    [(0.0, None, False), (0.0, UNSAMPLED, False), (1.0, UNSAMPLED, False), (0.0, SAMPLED, True), (1.0, None, True)],
)
async def test_caller_or_ratio_decides_what_is_sampled(ratio: float, traceparent: str | None, sent: bool) -> None:
    backend = Replicas()
    with traced(sample_ratio=ratio) as collector:
        (answer,) = await ask(backend, body(1), traceparent=traceparent)
    trace_id = answer.headers["x-synod-trace-id"]
    assert trace_id == TRACE if traceparent else len(trace_id) == 32
    assert backend.received[0] is not None
    _, trace, _, flags = backend.received[0].split("-")
    assert (trace, int(flags, 16) & 1) == (trace_id, sent)
    assert {span.trace for span in collector.spans} == ({trace_id} if sent else set())
    assert (collector.begun > 0) == sent


@pytest.mark.parametrize(
    "malformed", [f"00-{TRACE}-{SPAN}", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01", "00-" * 10_000]
)
async def test_malformed_traceparent_is_ignored(collector: Collector, malformed: str) -> None:
    (answer,) = await ask(Replicas(), body(1), traceparent=malformed)
    assert answer.status_code == 200
    root = collector.one("POST /v1/score")
    assert (root.parent, root.trace) == ("", answer.headers["x-synod-trace-id"])
    assert root.trace != TRACE


async def test_hanging_collector_delays_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first export hangs while all requests are scored; then no more spans arrive than the queue holds."""
    for name, value in (("EXPORT_TIMEOUT_S", 60.0), ("EXPORT_PERIOD_S", 0.01), ("QUEUED_SPANS", 32)):
        monkeypatch.setattr(tracing, name, value)
    monkeypatch.setattr(tracing, "EXPORT_BATCH", 16)
    with traced() as collector:
        collector.answering.clear()
        async with http(Replicas()) as client:
            for _ in range(30):
                assert (await post(client, body(1))).status_code == 200
        while not collector.begun:
            await asyncio.sleep(0.01)
        assert collector.begun == 1
        collector.answering.set()
    assert 32 <= len(collector.spans) <= 32 + 16


async def test_stop_does_not_wait_for_a_hanging_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "STOP_TIMEOUT_S", 0.2)
    monkeypatch.setattr(tracing, "EXPORT_TIMEOUT_S", 20.0)
    with traced() as collector:
        collector.answering.clear()
        tracing.request_span("one", {}).end()
        tracing.stop()
        sending = [thread for thread in threading.enumerate() if thread.name == "OtelBatchSpanRecordProcessor"]
        assert sending, "the export continues in the background"
        assert collector.spans == []
        assert not tracing.enabled()
    sending[0].join()


def test_collector_headers_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{TOKEN}")
    with traced() as collector:
        tracing.request_span("one", {}).end()
    assert collector.headers[0]["authorization"] == f"Bearer {TOKEN}"
    assert collector.one("one").parent == ""


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_client_sends_the_callers_span_with_every_chunk(collector: Collector, scheme: str) -> None:
    """The limit of two items makes two chunks, which the blocking client sends from threads.

    gRPC names the trace in the trailing metadata of a call, but not of one that is not traced.
    """
    gateway = Gateway(Replicas(), {}, LimitSettings(max_items=2), store=MemoryStore(0, 0))
    ports = {"http": free_port(), "grpc": free_port()}
    request = ScoreRequest(tuple(ScoreItem(np.full((2, 2, 3), level, np.uint8)) for level in (1, 2, 3)), ("number",))
    span = NonRecordingSpan(SpanContext(int(TRACE, 16), int(SPAN, 16), is_remote=False, trace_flags=TraceFlags(1)))

    def send() -> None:
        with SynodClient(f"{scheme}://127.0.0.1:{ports[scheme]}", timeout_s=30) as client:
            with trace.use_span(span):
                client.score(request)
            client.score(request)

    async with serving(Ports("127.0.0.1", *ports.values()), app.build(gateway), gateway, auth.Authenticator()):
        await asyncio.to_thread(send)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
            small = PROTOBUF.encode_stream_request(ScoreRequest((ITEM,), ("number",)))
            stream = channel.stream_stream(f"/{SERVICE}/ScoreStream")(iter([small]))
            assert len([part async for part in stream]) == 2
            refused = channel.unary_unary(f"/{SERVICE}/Score")(b"\xff", metadata=(("traceparent", SAMPLED),))
            listed = channel.unary_unary(f"/{SERVICE}/ListScorers")(b"")
            traces = [dict(await one.trailing_metadata()).get("x-synod-trace-id") for one in (stream, refused, listed)]
    gateway.close()
    tracing.stop()
    call, part = collector.one("ScoreStream"), collector.one("request")
    assert traces == [call.trace, TRACE, None]
    assert (part.parent, part.trace) == (call.id, call.trace)
    roots = collector.named("POST /v1/score" if scheme == "http" else "Score")
    chunks = [(one.parent, one.attributes["synod.items"]) for one in roots if one.attributes["synod.outcome"] == "ok"]
    assert sorted(chunks) == [("", 1), ("", 2), (SPAN, 1), (SPAN, 2)]
    assert {one.trace == TRACE for one in roots if one.parent} == {True}


@pytest.mark.slow
def test_disabled_tracing_imports_no_sdk() -> None:
    program = """
import asyncio, sys
from tests.unit.services.observability.test_tracing import SAMPLED, Replicas, ask, body
for name in [name for name in sys.modules if name.startswith(("tests.collector", "opentelemetry.proto"))]:
    del sys.modules[name]
backend = Replicas()
(answer,) = asyncio.run(ask(backend, body(1), traceparent=SAMPLED))
assert answer.status_code == 200, answer.text
assert "x-synod-trace-id" not in answer.headers
assert backend.received == [None]
sys.exit(([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exp"))] or 0))
"""
    root = Path(__file__).parents[4]
    run = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("http://me:secret@collector:4318", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("http://collector:4318?key=secret", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("collector:4318", "base URL"),
        ("grpc://collector:4317", "base URL"),
        ("http://collector:4318/v1/traces", "without /v1/traces"),
    ],
)
def test_endpoint_must_be_a_base_url_without_secrets(endpoint: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text(f'[tracing]\nendpoint = "{endpoint}"\n[scorers.a]\nkind = "ber"\nmodel = "./"\n')
    with pytest.raises(SettingsError, match=why) as refused:
        load(file, {})
    assert "secret@" not in str(refused.value)
    assert "key=secret" not in str(refused.value)
