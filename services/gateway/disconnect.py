"""Notice that an HTTP client has disconnected, and cancel its work."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

T = TypeVar("T")


async def cancel_on_disconnect(http: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; cancel it and raise ClientDisconnect when the client disconnects first."""
    task, disconnect = asyncio.create_task(work), asyncio.create_task(wait_for_disconnect(http))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        disconnect.cancel()
        task.cancel()
        await asyncio.wait({task, disconnect})


async def wait_for_disconnect(http: Request) -> None:
    """Return when the client has disconnected. Call it after the body has been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
