"""Send and receive messages over a stream socket, with a size limit on both sides.

A frame is "SYN1", the payload's length (4 bytes, big endian) and the payload (msgpack).
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Any, Final

from synod.errors import InvalidRequest, PayloadTooLarge
from synod.formats import dump_msgpack, load_msgpack

MAGIC: Final = b"SYN1"
HEADER: Final = struct.Struct(">4sI")
MAX_REQUEST_BYTES: Final = 2**30  # one item: an image and 16 references of 4096 x 4096 are 0.8 GiB
MAX_REPLY_BYTES: Final = 64 * 2**20


class Closed(Exception):
    """The other side closed the connection."""


class BadFrame(Exception):
    """The stream does not contain a valid frame within the limit. Nothing after it can be read."""


def send(connection: socket.socket, message: object, limit: int) -> None:
    """Send one message. Raises PayloadTooLarge before it sends anything, and any error of the socket."""
    payload = dump_msgpack(message)
    if len(payload) > limit:
        raise PayloadTooLarge(f"a message of {len(payload)} bytes exceeds the limit of {limit}")
    connection.sendall(HEADER.pack(MAGIC, len(payload)))
    connection.sendall(payload)


def receive(connection: socket.socket, limit: int, timeout_s: float | None = None) -> Any:
    """Return the next message. Raises Closed, BadFrame, TimeoutError and any error of the socket."""
    ends_s = None if timeout_s is None else time.monotonic() + timeout_s
    magic, length = HEADER.unpack(_receive_exactly(connection, HEADER.size, ends_s))
    if magic != MAGIC:
        raise BadFrame(f"a frame must start with {MAGIC!r}, not {magic!r}")
    if length > limit:
        raise BadFrame(f"a frame of {length} bytes exceeds the limit of {limit}")
    payload = _receive_exactly(connection, length, ends_s)
    try:
        return load_msgpack(payload)
    except (InvalidRequest, PayloadTooLarge, ValueError, RecursionError) as error:
        raise BadFrame(f"a frame of {length} bytes is not valid msgpack: {error}") from None


def _receive_exactly(connection: socket.socket, count: int, ends_s: float | None) -> bytes:
    data = bytearray(count)
    view, received = memoryview(data), 0
    while received < count:
        connection.settimeout(None if ends_s is None else max(ends_s - time.monotonic(), 0.001))
        size = connection.recv_into(view[received:])
        if size == 0:
            raise Closed(f"the stream ended after {received} of {count} bytes")
        received += size
    return bytes(data)
