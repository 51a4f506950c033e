"""The transport protocol, and the URL schemes that select a transport."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Final, Protocol

from synod.client.core import Call, RawResponse
from synod.codec import Codec

EXAMPLES: Final = "http://127.0.0.1:8000 or grpc://127.0.0.1:9000"
CONNECT_S: Final = 5.0  # for one attempt to connect
MAX_RESPONSE_BYTES: Final = 2**28  # of one message


class Transport(Protocol):
    """Send calls, or yield the parts of a streamed response; blocking, thread-safe.

    Raises Unavailable, DeadlineExceeded, and errors that the other end reports.
    """

    codec: Codec
    part_codec: Codec

    def send(self, call: Call) -> RawResponse: ...

    def stream(self, call: Call) -> Generator[bytes]: ...

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """Send calls from one event loop; otherwise as Transport."""

    codec: Codec
    part_codec: Codec

    async def send(self, call: Call) -> RawResponse: ...

    def stream(self, call: Call) -> AsyncGenerator[bytes]: ...

    async def close(self) -> None: ...


def scheme_of(url: str) -> str:
    """Return the URL's scheme: "http", "https", "grpc" or "grpcs". Raises ValueError for any other."""
    scheme, separator, rest = url.partition("://")
    if not separator or not rest or scheme not in ("http", "https", "grpc", "grpcs"):
        raise ValueError(f"'{url}' is not a Synod URL; give one such as {EXAMPLES}")
    return scheme
