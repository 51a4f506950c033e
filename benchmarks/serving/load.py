"""Run the closed-loop client in its own process: `python -m benchmarks.serving.load LOAD.json` prints measurements.

A request is one post, or several concurrent posts to several servers, and ends with the last of them. Bodies are
encoded in advance, so that the client needs little CPU. A repeat starts and ends when a request ends, so that each
request counts in one repeat.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import uvloop

from benchmarks.serving import usage

TIMEOUT_S = 300.0
PAUSE_AFTER_FAILURE_S = 0.05
GRPC_METHOD = "/synod.v1.RewardService/Score"
GRPC_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
Send = Callable[[bytes], Awaitable[bytes]]  # raises RuntimeError for an error status


@dataclass(frozen=True)
class Call:
    """The post of a request to one server. `url`: http://..., or grpc://host:port. `bodies`: a file for each set of
    items; client k sends set k modulo the number of sets."""

    url: str
    bodies: Sequence[str]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Load:
    """The calls, the repeats, and the processes whose CPU time counts. A repeat lasts at least `seconds` and one
    request per client, but at most `longest_s`. `answers` is the folder for each call's last answer to set 0."""

    calls: Sequence[Call]
    clients: int
    images: int
    repeats: int
    seconds: float
    longest_s: float
    answers: str
    servers: Sequence[int] = ()
    cores: Sequence[int] = ()


@dataclass
class Recorder:
    """Groups finished requests into repeats, after a warm-up as long as one repeat."""

    load: Load
    latencies_s: list[float] = field(default_factory=list)
    repeats: list[dict[str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _warm: bool = False
    _count: int = 0
    _began_s: float = field(default_factory=time.monotonic)
    _cpu_s: float = 0.0

    @property
    def done(self) -> bool:
        return len(self.repeats) == self.load.repeats

    def ended(self, latency_s: float) -> None:
        now_s = time.monotonic()
        self._count += 1
        if self._warm:
            self.latencies_s.append(latency_s)
        spent_s = now_s - self._began_s
        if spent_s < self.load.seconds or (self._count < self.load.clients and spent_s < self.load.longest_s):
            return
        cpu_s = usage.cpu_s(usage.tree(self.load.servers))
        if self._warm:
            images = self._count * self.load.images
            self.repeats.append({"images": images, "seconds": spent_s, "cpu_s": cpu_s - self._cpu_s})
        self._warm, self._count, self._began_s, self._cpu_s = True, 0, time.monotonic(), cpu_s

    def result(self, bytes_per_image: float) -> dict[str, Any]:
        """Return the measurements, with the message of the first failure."""
        return {
            "repeats": self.repeats,
            "latencies_s": self.latencies_s,
            "bytes_per_image": bytes_per_image,
            "failed": len(self.failures),
            "first_failure": self.failures[0] if self.failures else None,
        }


async def measure(load: Load) -> dict[str, Any]:
    """Return the repeats, the latencies (seconds) of all requests, and the number and first message of failures."""
    recorder = Recorder(load)
    bodies = [[Path(body).read_bytes() for body in call.bodies] for call in load.calls]
    async with AsyncExitStack() as stack:
        senders = [await _sender(call, stack) for call in load.calls]
        clients = [
            asyncio.create_task(_client(k, senders, [body[k % len(body)] for body in bodies], recorder))
            for k in range(load.clients)
        ]
        await asyncio.gather(*clients)
    return recorder.result(sum(len(body[0]) for body in bodies) / load.images)


async def _client(k: int, senders: Sequence[Send], bodies: Sequence[bytes], recorder: Recorder) -> None:
    ends_s = time.monotonic() + TIMEOUT_S
    while not recorder.done and (recorder.latencies_s or time.monotonic() < ends_s):
        began_s = time.monotonic()
        try:
            answers = await asyncio.gather(*(send(body) for send, body in zip(senders, bodies, strict=True)))
        except (RuntimeError, aiohttp.ClientError, grpc.aio.AioRpcError, TimeoutError) as error:
            recorder.failures.append(f"{type(error).__name__}: {str(error)[:300]}")
            await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
            continue
        recorder.ended(time.monotonic() - began_s)
        if k == 0 and recorder.done:
            for i, answer in enumerate(answers):
                Path(recorder.load.answers, f"{i}.answer").write_bytes(answer)


async def _sender(call: Call, stack: AsyncExitStack) -> Send:
    if call.url.startswith("grpc://"):
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(call.url.removeprefix("grpc://"), options=GRPC_OPTIONS)
        )
        score: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(GRPC_METHOD)
        metadata = tuple((key.lower(), value) for key, value in call.headers.items())

        async def ask(body: bytes) -> bytes:
            return await score(body, metadata=metadata, timeout=TIMEOUT_S)

        return ask
    session = await stack.enter_async_context(
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(TIMEOUT_S), headers=call.headers
        )
    )

    async def post(body: bytes) -> bytes:
        async with session.post(call.url, data=body) as response:
            answer = await response.read()
            if response.status != 200:
                raise RuntimeError(f"{call.url} answered {response.status}: {answer[:200]!r}")
            return answer

    return post


def read_load(path: str) -> Load:
    """Read a load from JSON and pin this process to its cores."""
    tree = json.loads(Path(path).read_text())
    load = Load(**{**tree, "calls": [Call(**call) for call in tree["calls"]]})
    if load.cores:
        os.sched_setaffinity(0, load.cores)
    return load


def main() -> int:
    load = read_load(sys.argv[1])
    print(json.dumps(uvloop.run(measure(load))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
