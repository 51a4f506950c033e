"""Count the fields of a message before it is parsed: two bytes on the wire can cost a hundred in memory. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.message import Message

from synod.errors import PayloadTooLarge

MAX_FIELDS: Final = 2**18  # of one body; a full request of the default limits has half as many
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_Inner = Mapping[int, Any]  # field number -> the _Inner of the message it holds, or "packed"
_INNER: dict[str, dict[int, Any]] = {}


def meter(data: bytes, kind: type[Message]) -> None:
    """Raise PayloadTooLarge for more than MAX_FIELDS fields and packed numbers, ValueError for invalid protobuf."""
    try:
        _count(data, _inner(kind.DESCRIPTOR), 0, len(data), 0)
    except IndexError:
        raise ValueError("the message is truncated") from None


def _inner(kind: Any) -> _Inner:
    if kind.full_name not in _INNER:
        doubles = [f for f in kind.fields if f.type == f.TYPE_DOUBLE]
        table = {f.number: "packed" for f in doubles if f.default_value == []}  # `is_packed` is protobuf 6's
        _INNER[kind.full_name] = table | {f.number: _inner(f.message_type) for f in kind.fields if f.message_type}
    return _INNER[kind.full_name]


def _count(data: bytes, inner: _Inner, at: int, end: int, fields: int) -> int:
    """Return `fields` plus those in data[at:end]; strings and bytes are skipped. Raises IndexError past the end."""
    while at < end:
        fields += 1
        tag, at = _varint(data, at)
        wire_type = tag & 7
        if wire_type == _BYTES:
            size, at = _varint(data, at)
            within = inner.get(tag >> 3)
            if within == "packed":
                fields += size // 8  # all packed fields of the schema are doubles
            elif within is not None:
                fields = _count(data, within, at, min(at + size, end), fields)
            at += size
        elif wire_type == _VARINT:
            _, at = _varint(data, at)
        elif wire_type in (_FIXED64, _FIXED32):
            at += 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"a field has wire type {wire_type}, which this schema does not use")
        if fields > MAX_FIELDS:
            raise PayloadTooLarge(f"the body holds more than {MAX_FIELDS} fields; send several requests")
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at data[at] and the offset after it."""
    byte = data[at]
    if byte < 128:
        return byte, at + 1
    value, shift = byte & 127, 7
    while byte >= 128 and shift < 70:
        at += 1
        byte = data[at]
        value |= (byte & 127) << shift
        shift += 7
    return value, at + 1
