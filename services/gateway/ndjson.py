"""An answer in parts over HTTP: one JSON object a line, each sent as soon as it is known (application/x-ndjson)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Final

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from services.gateway.boundary import OpenRequest
from services.observability import tracing
from synod.codec import JSON
from synod.contracts import Part, RequestError
from synod.errors import SynodError

NDJSON: Final = "application/x-ndjson"
log = logging.getLogger("synod.gateway")


async def gone(http: Request) -> None:
    """Returns when the client has left. To be awaited once the body is read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


class Ndjson(Response):
    """Sends the parts of a stream; when the client leaves, the stream is closed, and its work with it.

    An error after the first part cannot change the status, so it is the last line, and the outcome of the request,
    which is finished when the last line is sent.
    """

    media_type = NDJSON

    def __init__(
        self, http: Request, first: Part, rest: AsyncGenerator[Part], request_id: str, opened: OpenRequest
    ) -> None:
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._http, self._first, self._rest, self._request_id, self._opened = http, first, rest, request_id, opened

    @classmethod
    async def open(cls, http: Request, parts: AsyncGenerator[Part], request_id: str, opened: OpenRequest) -> Ndjson:
        """The answer once its first part is known. Raises what the stream raises before."""
        return cls(http, await anext(parts), parts, request_id, opened)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outcome = "client_gone"
        with tracing.use_span(self._opened.span):
            sending = asyncio.create_task(self._send(send))
        left = asyncio.create_task(gone(self._http))
        try:
            await asyncio.wait({sending, left}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and sending.exception() is None:
                outcome = sending.result()
        finally:
            sending.cancel()
            left.cancel()
            await asyncio.wait({sending, left})
            await self._rest.aclose()
            self._opened.finish(outcome)

    async def _send(self, send: Send) -> str:
        """Send the whole answer; the outcome of the request."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _line(send, self._first)
        outcome = "ok"
        try:
            async for part in self._rest:
                await _line(send, part)
        except SynodError as error:
            outcome = error.code
            await _line(send, RequestError(self._request_id, error))
        except Exception:  # the rim: the caller learns that it is our fault, the log learns why
            log.exception("request %s failed (%s)", self._request_id, self._opened.span)
            hidden = SynodError(f"internal error; quote request id {self._request_id}")
            outcome = hidden.code
            await _line(send, RequestError(self._request_id, hidden))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return outcome


async def _line(send: Send, part: Part) -> None:
    await send({"type": "http.response.body", "body": JSON.encode_part(part) + b"\n", "more_body": True})
