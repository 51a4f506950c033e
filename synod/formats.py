"""Read and write JSON and msgpack: bytes to trees and back, strictly and bounded. Pure.

JSON carries bytes as base64 (RFC 4648, padded; ASCII whitespace is skipped), msgpack carries them as they are. A
repeated key is an InvalidRequest, more than MAX_VALUES values are a PayloadTooLarge.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import sys
from collections.abc import Sequence
from typing import Any, Final

import msgpack

from synod.contracts import UnreadableImage
from synod.errors import InvalidRequest, PayloadTooLarge
from synod.reader import MAX_ENTRIES, Node, quote

_NOT_BASE64: Final = re.compile(rb"[^A-Za-z0-9+/=]")
MAX_VALUES: Final = 2**22  # of one body: a small hostile body can unfold to many


def load_json(data: bytes) -> Any:
    """Return the tree of JSON. Raises InvalidRequest, PayloadTooLarge, ValueError, RecursionError."""
    _meter(sum(map(data.count, (b",", b"[", b"{"))))
    return json.loads(str(data, "utf-8"), object_pairs_hook=_unique)


def dump_json(tree: object) -> bytes:
    """Write one line of JSON. Raises ValueError for NaN and infinities, TypeError for what JSON cannot hold."""
    return json.dumps(tree, allow_nan=False, separators=(",", ":")).encode()


def read_base64(node: Node) -> bytes:
    """Return the bytes, or an UnreadableImage of text that is not base64. Raises InvalidRequest for other types."""
    text = node.value
    if not isinstance(text, str):
        raise node.error('base64 text, {"data", "shape"} or {"digest"} belongs here')
    try:
        return strict_base64(text)
    except ValueError:
        pass
    data = text.encode(errors="replace")
    packed = data.translate(None, b" \t\r\n\f\v")
    try:
        return strict_base64(packed)
    except ValueError as error:
        unreadable = UnreadableImage(data)
        unreadable.why = f"not base64: {_base64_fault(packed) or error}"
        return unreadable


def strict_base64(text: str | bytes) -> bytes:
    """Decode padded base64 text that holds nothing else. Raises ValueError."""
    if sys.version_info >= (3, 11):
        return binascii.a2b_base64(text, strict_mode=True)
    if len(text) % 4:
        raise ValueError("Incorrect padding")
    return base64.b64decode(text, validate=True)


def _base64_fault(packed: bytes) -> str | None:
    """Describe what is wrong with base64 text, and the remedy; None if binascii describes it better."""
    if packed.startswith(b"data:"):
        return "it begins with 'data:'; send what follows the comma"
    found = _NOT_BASE64.search(packed)
    if found is None:
        padded = len(packed) % 4 == 0
        return (
            None if padded else f"{len(packed)} characters, which is not a multiple of 4; send all of it, padded by '='"
        )
    character = quote(found.group().decode(errors="replace"))
    if found.group() in (b"-", b"_"):
        return f"character {found.start()} is {character}, of the URL-safe alphabet; send the standard one ('+', '/')"
    return f"character {found.start()} is {character}; send the standard alphabet, padded by '='"


def pack_base64(data: bytes | memoryview) -> str:
    """Return padded base64 without line breaks."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def load_msgpack(data: bytes) -> Any:
    """Return the tree of msgpack. Raises InvalidRequest, PayloadTooLarge, ValueError."""
    entries = 0

    def count(values: Sequence[Any]) -> Sequence[Any]:
        nonlocal entries
        entries += 1 + len(values)
        _meter(entries)
        return values

    return msgpack.unpackb(
        data,
        raw=False,
        strict_map_key=True,
        max_array_len=min(len(data), MAX_ENTRIES),
        max_map_len=min(len(data), MAX_ENTRIES),
        ext_hook=_refuse_extension,
        list_hook=count,
        object_pairs_hook=lambda pairs: _unique(count(pairs)),
    )


def dump_msgpack(tree: object) -> bytes:
    """Return msgpack. Raises ValueError, TypeError, OverflowError for what it cannot hold."""
    packed: bytes = msgpack.packb(tree)
    return packed


def read_bin(node: Node) -> bytes:
    """Return the bytes of an encoded image. Raises InvalidRequest."""
    if not isinstance(node.value, bytes):
        raise node.error('bytes (msgpack bin), {"data", "shape"} or {"digest"} belong here')
    return node.value


def _refuse_extension(code: int, data: bytes) -> None:
    raise InvalidRequest(f"the body holds a msgpack extension of type {code}; send plain msgpack")


def _unique(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    entries: dict[Any, Any] = {}
    for key, value in pairs:
        if key in entries:
            raise InvalidRequest(f"the key {quote(key)} occurs twice in one object")
        entries[key] = value
    return entries


def _meter(values: int) -> None:
    if values > MAX_VALUES:
        raise PayloadTooLarge(
            f"the body holds {values} values or more, the limit is {MAX_VALUES}; send several requests"
        )
