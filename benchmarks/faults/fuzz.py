"""Hostile bodies over every transport: each gets a typed answer, and the gateway keeps serving."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.faults.bodies import PNG, RAW, bodies
from services.gateway.ndjson import NDJSON
from synod.client import SynodClient
from synod.codec import CODECS, JSON, MSGPACK, PROTOBUF, Codec
from synod.contracts import RequestError, Rewards, ScoredItem, ScoreFailure, ScoreItem, ScoreRequest, ScoreResponse
from synod.errors import ScorerFailed, SynodError
from synod.protobuf import ERROR_KEY, SERVICE

ROOT: Final = Path(__file__).resolve().parents[2]
TYPED_5XX: Final = (503, 504)
INTERNAL: Final = (SynodError.code, ScorerFailed.code)
GROWTH_MIB: Final = 256.0  # what bodies of 1 MiB may expand to
_ACCEPTED: Final = (*CODECS, NDJSON, "*/*", "text/html, application/json;q=0.5", "application/msgpack, x", "é", "")
_SENT: Final = (*CODECS, "application/json; charset=utf-16", "APPLICATION/JSON", "text/plain", "multipart/x", "")


@dataclass(frozen=True, slots=True)
class Wire:
    """Cases of one transport, its share of all cases (0 for a single case), and how to send one.

    `send` checks the answer and returns its name for the counts; it raises if a check fails.
    """

    cases: st.SearchStrategy[Any]
    parts: int
    send: Callable[[Any], str]


class Target:
    """The gateway under test and connections to it."""

    def __init__(self, process: subprocess.Popen[str], ports: dict[str, int]) -> None:
        self.pid = process.pid
        self.url, self.rpc_url = f"http://127.0.0.1:{ports['http']}", f"grpc://127.0.0.1:{ports['rpc']}"
        self.http = httpx.Client(base_url=self.url, timeout=120)
        self.channel = grpc.insecure_channel(self.rpc_url.removeprefix("grpc://"))

    def memory_mib(self, what: str) -> float:
        """Return VmRSS or VmHWM (the peak)."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


@contextmanager
def target() -> Iterator[Target]:
    """Start a gateway and end it with the context."""
    line = [sys.executable, "-m", "benchmarks.faults.target"]
    with subprocess.Popen(line, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        one = Target(process, json.loads(process.stdout.readline()))
        try:
            with one.http, one.channel:
                yield one
        finally:
            process.communicate()


def fuzz(cases: int) -> dict[str, Any]:
    """Send at least `cases` over all transports and from the OpenAPI document; report failures, shrunk."""
    sent, answers = Counter[str](), Counter[str]()
    broken: dict[str, str] = {}
    with target() as one:
        began_mib = one.memory_mib("VmRSS")
        wires = _wires(one) | _documented(one)
        share = -(-cases // sum(wire.parts for wire in wires.values()))
        for name, wire in wires.items():
            try:
                _probe(name, wire, max(1, share * wire.parts), sent, answers)
            except Exception as error:  # reported in the results file
                lines = [f"{type(error).__name__}: {error}"[:2000], *getattr(error, "__notes__", ())]
                broken[name] = "\n".join(lines)
        peak_mib = one.memory_mib("VmHWM")
        held = {
            "every error is typed, and every 5xx is 503 or 504": not broken,
            "the gateway serves afterwards": serves(one),
            "memory is bounded": peak_mib - began_mib < GROWTH_MIB,
        }
    figures = {"cases": sent.total(), "by_wire": dict(sent), "answers": dict(sorted(answers.items()))}
    return figures | {"rss_mib": {"began": began_mib, "peak": peak_mib}, "broken": broken, "held": held}


def _probe(name: str, wire: Wire, cases: int, sent: Counter[str], answers: Counter[str]) -> None:
    """Send `cases`, the same in every run, and count them.

    Raises for the smallest failing case, with Hypothesis' notes.
    """

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(wire.cases)
    def probe(case: Any) -> None:
        sent[name] += 1
        answers[wire.send(case)] += 1

    probe()


def _wires(one: Target) -> dict[str, Wire]:
    """REST in each format, streamed REST, uploads, and gRPC."""

    def post(case: tuple[bytes, str, str]) -> str:
        return _rest(one, "POST", "/v1/score", *case)

    def put(case: tuple[bytes, str, str]) -> str:
        return _rest(one, "PUT", "/v1/images", *case)

    found: dict[str, Wire] = {}
    accepted = st.sampled_from(_ACCEPTED)
    for codec in CODECS.values():
        short = codec.content_type.removeprefix("application/")
        own = st.just(codec.content_type)
        mixed = st.one_of(own, own, own, st.sampled_from(_SENT))
        found[f"rest {short}"] = Wire(st.tuples(bodies(codec), mixed, accepted), 3, post)
        found[f"ndjson {short}"] = Wire(st.tuples(bodies(codec), own, st.just(NDJSON)), 1, post)
        found[f"images {short}"] = Wire(st.tuples(bodies(codec, put=True), mixed, accepted), 1, put)
    score, images = bodies(PROTOBUF), bodies(PROTOBUF, put=True)
    several = st.lists(score.map(_framed) | score, max_size=3)
    found["grpc Score"] = Wire(score, 3, partial(_unary, one, "Score", PROTOBUF.decode_response))
    found["grpc PutImages"] = Wire(images, 1, partial(_unary, one, "PutImages", PROTOBUF.decode_digests))
    found["grpc ScoreStream"] = Wire(several, 2, partial(_stream, one))
    return found


def _documented(one: Target) -> dict[str, Wire]:
    """Valid and invalid cases of every operation, made by schemathesis from the OpenAPI document."""
    import schemathesis
    from schemathesis import GenerationMode
    from schemathesis.core.result import Err

    def send(case: Any) -> str:
        answer = case.call()
        return check(case.operation.path, answer.status_code, dict(answer.headers), answer.content)

    found: dict[str, Wire] = {}
    document = schemathesis.openapi.from_url(f"{one.url}/openapi.json")
    for result in document.get_all_operations():
        assert not isinstance(result, Err), result.err()
        operation = result.ok()
        for mode in GenerationMode if operation.body else (GenerationMode.POSITIVE,):
            strategy = operation.as_strategy(generation_mode=mode)
            found[f"openapi {mode.value} {operation.label}"] = Wire(strategy, 2 if operation.body else 0, send)
    return found


def _rest(one: Target, method: str, path: str, body: bytes, kind: str, accept: str) -> str:
    headers = {b"content-type": kind.encode("latin-1"), b"accept": accept.encode("latin-1")}
    answer = one.http.request(method, path, content=body, headers=headers)
    return check(path, answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, answer.content)


def check(path: str, status: int, headers: dict[str, Any], body: bytes) -> str:
    """Return the answer's name for the counts. Raises AssertionError or a decoding error if a check fails."""
    listed = headers.get("content-type", "")
    kind = str(listed[0] if isinstance(listed, list) else listed).partition(";")[0]
    if status == 200:
        if kind == NDJSON:
            _check_parts(body)
        elif path == "/v1/score":
            _check_scores(CODECS[kind].decode_response(body))
        elif path == "/v1/images":
            CODECS[kind].decode_digests(body)
        return f"{path} 200"
    error = CODECS[kind].decode_error(body)
    _check_error(error, status)
    assert not error.retryable or "retry-after" in headers, "no Retry-After"
    return f"{path} {status} {error.code}"


def _check_parts(body: bytes) -> None:
    parts = [JSON.decode_part(line) for line in body.splitlines()]
    for part in parts:
        if isinstance(part, ScoredItem) and isinstance(part.outcome, ScoreFailure):
            assert part.outcome.code not in INTERNAL, part
        if isinstance(part, RequestError):
            _check_error(part.error, part.error.http_status)
    assert isinstance(parts[-1], Rewards | RequestError), "the answer was cut off"


def _check_scores(response: ScoreResponse) -> None:
    for result in response.results:
        for outcome in (*result.scores.values(), result.reward):
            assert not isinstance(outcome, ScoreFailure) or outcome.code not in INTERNAL, outcome


def _check_error(error: SynodError, status: int) -> None:
    assert error.code not in INTERNAL, error
    assert status < 500 or status in TYPED_5XX, f"{status}: {error}"


def _unary(one: Target, method: str, decode: Callable[[bytes], Any], body: bytes) -> str:
    try:
        call: Any = one.channel.unary_unary(f"/{SERVICE}/{method}")
        answer = decode(call(body, timeout=120))
        if isinstance(answer, ScoreResponse):
            _check_scores(answer)
    except grpc.RpcError as failed:
        return _check_status(method, failed)
    return f"{method} OK"


def _stream(one: Target, sent: list[bytes]) -> str:
    """Check that every message of the stream is answered to its end, whatever the other messages are."""
    ended = 0
    try:
        call: Any = one.channel.stream_stream(f"/{SERVICE}/ScoreStream")
        for data in call(iter(sent), timeout=120):
            part = PROTOBUF.decode_part(data)
            if isinstance(part, RequestError):
                _check_error(part.error, part.error.http_status)
            ended += isinstance(part, RequestError | Rewards)
    except grpc.RpcError as failed:
        return _check_status("ScoreStream", failed)
    assert ended == len(sent), f"{ended} of {len(sent)} requests were answered"
    return "ScoreStream OK"


def _check_status(method: str, failed: Any) -> str:
    encoded = dict(failed.trailing_metadata() or ()).get(ERROR_KEY)
    assert encoded is not None, f"an untyped status {failed.code()}: {failed.details()}"
    error = PROTOBUF.decode_error(encoded)
    _check_error(error, error.http_status)
    assert failed.code().name == error.grpc_status
    return f"{method} {failed.code().name} {error.code}"


def _framed(body: bytes) -> bytes:
    """Encode a ScoreStreamRequest that holds this ScoreRequest: field 1, its length, its bytes."""
    size, length = len(body), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return b"\x0a" + bytes([*length, size]) + body


def serves(one: Target) -> bool:
    """Return whether a valid request is scored correctly over every transport."""
    request = ScoreRequest((ScoreItem(PNG, "a dog"), ScoreItem(RAW, "a dog")), ("level",), request_id="after")
    wanted = [128 / 255, 77 / 255]

    def right(response: ScoreResponse) -> bool:
        return [getattr(result.scores["level"], "value", None) for result in response.results] == wanted

    def rest(codec: Codec) -> ScoreResponse:
        kind = {"content-type": codec.content_type}
        return codec.decode_response(
            one.http.post("/v1/score", content=codec.encode_request(request), headers=kind).content
        )

    with SynodClient(one.rpc_url, timeout_s=120) as client:
        answers = [rest(JSON), rest(MSGPACK), rest(PROTOBUF), client.score(request)]
    return all(map(right, answers))
