"""What a transport is, and which one an address asks for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Final, Protocol

from synod.client.core import Answer, Call
from synod.codec import Codec

EXAMPLES: Final = "http://127.0.0.1:8000 or grpc://127.0.0.1:9000"
MAX_ANSWER_BYTES: Final = 2**28  # of one message


class Transport(Protocol):
    """Moves bytes; blocking, thread-safe. Raises Unavailable, DeadlineExceeded, and what the other end tells of."""

    codec: Codec
    part_codec: Codec

    def send(self, call: Call) -> Answer:
        """One call, one answer."""
        ...

    def stream(self, call: Call) -> Generator[bytes]:
        """One call, its answer's parts."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class AsyncTransport(Protocol):
    """The same, for one event loop."""

    codec: Codec
    part_codec: Codec

    async def send(self, call: Call) -> Answer:
        """One call, one answer."""
        ...

    def stream(self, call: Call) -> AsyncGenerator[bytes]:
        """One call, its answer's parts."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


def scheme_of(url: str) -> str:
    """ "http", "https", "grpc" or "grpcs". Raises ValueError for an address of another kind."""
    scheme, separator, rest = url.partition("://")
    if not separator or not rest or scheme not in ("http", "https", "grpc", "grpcs"):
        raise ValueError(f"'{url}' is no service's URL; give one such as {EXAMPLES}")
    return scheme
