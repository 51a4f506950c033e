"""Send a response in parts over HTTP: one JSON object a line (application/x-ndjson), each as soon as it is known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from services.gateway.boundary import OpenRequest
from services.gateway.disconnect import wait_for_disconnect
from services.observability import tracing
from synod.codec import JSON
from synod.contracts import Part, RequestError

NDJSON: Final = "application/x-ndjson"


class Ndjson(Response):
    """Sends the parts of a stream and closes the request after the last. A disconnect closes the stream.

    An error after the first part cannot change the status: it is the last line, and the outcome of the request.
    """

    media_type = NDJSON

    def __init__(self, http: Request, first: Part, rest: AsyncGenerator[Part], opened: OpenRequest) -> None:
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._http, self._first, self._rest, self._opened = http, first, rest, opened
        opened.streaming = True

    @classmethod
    async def open(cls, http: Request, parts: AsyncGenerator[Part], opened: OpenRequest) -> Ndjson:
        """Wait for the first part and return the response. Raises what the stream raises before it."""
        return cls(http, await anext(parts), parts, opened)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with tracing.use_span(self._opened.span):
            sending = asyncio.create_task(self._send(send))
        disconnect = asyncio.create_task(wait_for_disconnect(self._http))
        try:
            await asyncio.wait({sending, disconnect}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            sending.cancel()
            disconnect.cancel()
            await asyncio.wait({sending, disconnect})
            await self._rest.aclose()
            self._opened.close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _send_line(send, self._first)
        error = None
        try:
            async for part in self._rest:
                await _send_line(send, part)
        except Exception as raised:  # an error boundary: the last line reports it
            error = self._opened.fail(raised)
            await _send_line(send, RequestError(self._opened.request_id, error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        if error is None:
            self._opened.succeed()


async def _send_line(send: Send, part: Part) -> None:
    await send({"type": "http.response.body", "body": JSON.encode_part(part) + b"\n", "more_body": True})
