"""The wire formats: bytes <-> records, and the table from content type to codec. Pure; no file, no net.

`synod.tree` says which fields there are. JSON carries bytes as base64 (RFC 4648, padded), msgpack as they are. Both are
read strictly and bounded: an unknown or repeated key, a wrong type, NaN, or more than MAX_VALUES values is an
InvalidRequest that names the path. Both give equal records for equal requests.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from synod import tree
from synod.contracts import ScoreRequest, ScoreResponse
from synod.errors import InvalidRequest, PayloadTooLarge, SynodError, UnsupportedMedia
from synod.reader import MAX_ENTRIES, Node, show

MAX_VALUES: Final = 2**22  # of one body: bounds what a small hostile body can unfold to


@dataclass(frozen=True, slots=True)
class Codec:
    """One format. Every `decode_*` raises InvalidRequest, naming the path of the field that is wrong."""

    content_type: str
    loads: Callable[[bytes], Any]
    dumps: Callable[[tree.Tree], bytes]
    read_bytes: tree.ReadBytes
    pack_bytes: tree.PackBytes

    def decode_request(self, data: bytes) -> ScoreRequest:
        """Raw pictures are read-only views of what was read. Raises InvalidRequest, PayloadTooLarge."""
        return tree.read_request(self._parse(data), self.read_bytes)

    def encode_request(self, request: ScoreRequest) -> bytes:
        """Raises InvalidRequest for a picture, weight or truth that no plane would take."""
        body = tree.request_tree(request, self.pack_bytes)
        try:
            return self.dumps(body)
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidRequest(f"the request cannot be sent as {self.content_type}: {error}") from None

    def decode_response(self, data: bytes) -> ScoreResponse:
        """Raises InvalidRequest."""
        return tree.read_response(self._parse(data))

    def encode_response(self, response: ScoreResponse) -> bytes:
        """Never raises: a score that cannot be carried is sent as a failure, beside its neighbours' scores."""
        return self.dumps(tree.response_tree(response))

    def decode_error(self, data: bytes) -> SynodError:
        """The error of a body {"error": {code, retryable, message}}. Raises InvalidRequest when it is none."""
        return tree.read_error(self._parse(data))

    def encode_error(self, error: SynodError) -> bytes:
        """The body {"error": {code, retryable, message}}; the status is the error's `http_status`."""
        return self.dumps(tree.error_tree(error))

    def decode_plain(self, data: bytes) -> dict[str, Any]:
        """An object of free-form fields, such as the answers of `GET` calls. Raises InvalidRequest."""
        return self._parse(data).table(Node.plain)

    def _parse(self, data: bytes) -> Node:
        try:
            return Node(self.loads(data))
        except SynodError:
            raise
        except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
            why = f"{type(error).__name__}: {error}" if not isinstance(error, RecursionError) else "nested too deep"
            raise InvalidRequest(f"the body is not {self.content_type}: {why}") from None


def codec_for(content_type: str | None) -> Codec:
    """The codec of a Content-Type header, parameters ignored (JSON is UTF-8 by definition). Raises UnsupportedMedia."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind not in CODECS:
        got = f"content type {show(kind)}" if kind else "no content type"
        raise UnsupportedMedia(f"{got}; send one of {', '.join(CODECS)}")
    return CODECS[kind]


def _load_json(data: bytes) -> Any:
    _meter(sum(map(data.count, (b",", b"[", b"{"))))
    return json.loads(str(data, "utf-8"), object_pairs_hook=_unique)


def _dump_json(body: tree.Tree) -> bytes:
    return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()


def _read_base64(node: Node) -> bytes:
    if not isinstance(node.value, str):
        raise node.error('base64 text or {"data", "shape"} belongs here')
    try:
        return binascii.a2b_base64(node.value, strict_mode=True)
    except ValueError as error:
        raise node.error(
            f"not base64 ({error}); send the standard alphabet, padded, without a 'data:' prefix"
        ) from None


def _pack_base64(data: bytes | memoryview) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _load_msgpack(data: bytes) -> Any:
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


def _refuse_extension(code: int, data: bytes) -> None:
    raise InvalidRequest(f"the body holds a msgpack extension of type {code}; send plain msgpack")


def _dump_msgpack(body: tree.Tree) -> bytes:
    packed: bytes = msgpack.packb(body)
    return packed


def _read_bin(node: Node) -> bytes:
    if not isinstance(node.value, bytes):
        raise node.error('bytes (msgpack bin) or {"data", "shape"} belong here')
    return node.value


def _unique(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    entries: dict[Any, Any] = {}
    for key, value in pairs:
        if key in entries:
            raise InvalidRequest(f"the key {show(key)} occurs twice in one object")
        entries[key] = value
    return entries


def _meter(values: int) -> None:
    if values > MAX_VALUES:
        raise PayloadTooLarge(
            f"the body holds {values} values or more, the limit is {MAX_VALUES}; send several requests"
        )


CODECS: Final[Mapping[str, Codec]] = {
    codec.content_type: codec
    for codec in (
        Codec("application/json", _load_json, _dump_json, _read_base64, _pack_base64),
        Codec("application/msgpack", _load_msgpack, _dump_msgpack, _read_bin, lambda data: data),
    )
}
