"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, TypeVar

import httpx

from synod.client import core
from synod.client.flows import MAX_CONCURRENT_CHUNKS, Flow, Flows, Gather, Sleep, Step
from synod.client.headers import find_token
from synod.client.http import AsyncHttpTransport
from synod.client.transport import AsyncTransport, scheme_of
from synod.contracts import ImageData, Part, ScoreRequest, ScoreResponse
from synod.errors import SynodError, UnknownImage
from synod.retry import RetryPolicy
from synod.values import OnError, Values

T = TypeVar("T")


class AsyncSynodClient:
    """Call a reward service from one event loop: SynodClient's arguments and methods, awaited.

    Cancelling a call cancels its work in the service.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float = 60.0,
        retries: int = 4,
        by_digest: bool = False,
        token: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._transport = _transport(base_url, find_token(token), transport)
        self._flows = Flows(self._transport.codec, timeout_s, RetryPolicy(retries), by_digest)

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        return await self._run(self._flows.score(request))

    async def values(self, request: ScoreRequest, *, on_error: OnError = "raise") -> Values:
        return await self._run(self._flows.values(request, on_error))

    async def stream(self, request: ScoreRequest) -> AsyncGenerator[Part]:
        request, deadline_s = self._flows.start(request)
        refusal: UnknownImage | None = None
        while True:
            sent = await self._run(self._flows.prepare_stream(request, deadline_s, refusal))
            reader = core.PartReader(sent, self._transport.part_codec)
            try:
                async with aclosing(self._transport.stream(core.stream_call(sent, self._transport.codec))) as parts:
                    async for data in parts:
                        yield reader.read(data)
                reader.close()
                return
            except UnknownImage as error:
                if refusal is not None or reader.started:
                    raise
                refusal = error

    async def put_images(self, images: Sequence[ImageData]) -> tuple[str, ...]:
        return await self._run(self._flows.put_images(images))

    async def scorers(self) -> list[dict[str, Any]]:
        return await self._run(self._flows.scorers())

    async def ensembles(self) -> dict[str, dict[str, Any]]:
        return await self._run(self._flows.ensembles())

    async def wait_ready(self, timeout_s: float) -> None:
        await self._run(self._flows.wait_ready(timeout_s))

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> AsyncSynodClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    outcome = await self._do(step)
                except SynodError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(outcome)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _do(self, step: Step) -> object:
        if isinstance(step, Sleep):
            await asyncio.sleep(step.seconds)
            return None
        if isinstance(step, Gather):
            return await self._gather(step)
        return await self._transport.send(step)

    async def _gather(self, step: Gather) -> list[object]:
        slots = asyncio.Semaphore(MAX_CONCURRENT_CHUNKS)

        async def run(flow: Flow[object]) -> object:
            async with slots:
                return await self._run(flow)

        tasks = [asyncio.create_task(run(flow)) for flow in step.flows]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()


def _transport(base_url: str, token: str | None, replacement: httpx.AsyncBaseTransport | None) -> AsyncTransport:
    if scheme_of(base_url).startswith("http"):
        return AsyncHttpTransport(base_url, token, replacement)
    from synod.client.rpc import AsyncRpcTransport  # grpc is slow to import

    return AsyncRpcTransport(base_url, token)
