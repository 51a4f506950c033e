"""Encode and decode records in the three wire formats, and find the codec of a content type. Pure: no file, no network.

`synod.records` reads and writes the fields, `synod.formats` and `synod.protobuf` the bytes of each format. Reading is
strict and bounded: an unknown or a repeated key, a wrong type, NaN, or too many values is an InvalidRequest that names
the path (protobuf skips unknown fields). Equal bodies give equal records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from synod import formats, protobuf, records
from synod.contracts import (
    Catalogue,
    Part,
    PutImagesRequest,
    PutImagesResponse,
    ScoreRequest,
    ScoreResponse,
)
from synod.errors import InvalidRequest, SynodError, UnsupportedMedia
from synod.reader import Node, quote

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Codec:
    """One format. Every `decode_*` raises InvalidRequest, naming the path of the field that is wrong.

    `loads` and `dumps` take the name of the message beside it, for the format whose bytes do not describe themselves.
    """

    content_type: str
    loads: Callable[[bytes, str], Any]
    dumps: Callable[[records.Tree, str], bytes]
    read_bytes: records.ReadBytes
    pack_bytes: records.PackBytes

    def decode_request(self, data: bytes) -> ScoreRequest:
        """Raw images are read-only views of what was read. Raises InvalidRequest, PayloadTooLarge."""
        return self._decode(ScoreRequest, data, "ScoreRequest")

    def encode_request(self, request: ScoreRequest) -> bytes:
        """Raises InvalidRequest for an image, weight, truth or timeout that every service would refuse."""
        return self._encode_sent(request, "ScoreRequest")

    def decode_stream_request(self, data: bytes) -> ScoreRequest:
        """Read a request of a gRPC stream; the other formats have no message of its own for it. Raises as
        `decode_request`."""
        return self._decode(ScoreRequest, data, "ScoreStreamRequest")

    def encode_stream_request(self, request: ScoreRequest) -> bytes:
        """Raises as `encode_request`."""
        return self._encode_sent(request, "ScoreStreamRequest")

    def decode_response(self, data: bytes) -> ScoreResponse:
        """Raises InvalidRequest."""
        return self._decode(ScoreResponse, data, "ScoreResponse")

    def encode_response(self, response: ScoreResponse) -> bytes:
        """Never raises: a score that no format can carry is sent as a failure beside the other scores."""
        return self._encode(ScoreResponse, response, "ScoreResponse")

    def decode_error(self, data: bytes) -> SynodError:
        """Return the error of a body {"error": {code, retryable, message, ..}}. Raises InvalidRequest otherwise."""
        return records.read_error(self._parse(data, "Error"))

    def encode_error(self, error: SynodError) -> bytes:
        """Return the body {"error": {code, retryable, message, ..}}; the status is the error's `http_status`."""
        return self.dumps(records.error_tree(error), "Error")

    def decode_part(self, data: bytes) -> Part:
        """Read a part of a streamed answer: a line of NDJSON, a message of gRPC. Raises InvalidRequest."""
        part: Part = records.read(Part, self._parse(data, "ScoreStreamResponse"))
        return part

    def encode_part(self, part: Part) -> bytes:
        """Never raises. JSON gives one line, without its end."""
        return self._encode(Part, part, "ScoreStreamResponse")

    def decode_put(self, data: bytes) -> PutImagesRequest:
        """Raises InvalidRequest, PayloadTooLarge."""
        return self._decode(PutImagesRequest, data, "PutImagesRequest")

    def encode_put(self, request: PutImagesRequest) -> bytes:
        """Raises InvalidRequest for an image that every service would refuse."""
        return self._encode_sent(request, "PutImagesRequest")

    def decode_digests(self, data: bytes) -> PutImagesResponse:
        """Raises InvalidRequest."""
        return self._decode(PutImagesResponse, data, "PutImagesResponse")

    def encode_digests(self, response: PutImagesResponse) -> bytes:
        """Never raises for digests of `synod.digest`."""
        return self._encode(PutImagesResponse, response, "PutImagesResponse")

    def decode_catalogue(self, data: bytes) -> Catalogue:
        """Raises InvalidRequest."""
        return self._decode(Catalogue, data, "ListScorersResponse")

    def encode_catalogue(self, catalogue: Catalogue) -> bytes:
        """Never raises for what a service's settings allow."""
        return self._encode(Catalogue, catalogue, "ListScorersResponse")

    def decode_object(self, data: bytes) -> dict[str, Any]:
        """Read an object of free-form fields: the answer of `GET /v1/scorers`, or of ListScorers. Raises
        InvalidRequest."""
        return self._parse(data, "ListScorersResponse").table(Node.json_value)

    def _decode(self, kind: type[T], data: bytes, message: str) -> T:
        return records.read(kind, self._parse(data, message), self.read_bytes)

    def _encode(self, kind: Any, record: object, message: str) -> bytes:
        return self.dumps(records.write(kind, record, self.pack_bytes), message)

    def _encode_sent(self, record: object, message: str) -> bytes:
        try:
            return self._encode(type(record), record, message)
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidRequest(f"the request cannot be sent as {self.content_type}: {error}") from None

    def _parse(self, data: bytes, message: str) -> Node:
        try:
            return Node(self.loads(data, message))
        except SynodError:
            raise
        except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
            why = f"{type(error).__name__}: {error}" if not isinstance(error, RecursionError) else "nested too deep"
            raise InvalidRequest(f"the body is not {self.content_type}: {why}") from None


def codec_for(content_type: str | None) -> Codec:
    """The codec of a Content-Type header, parameters ignored (JSON is UTF-8 by definition). Raises UnsupportedMedia."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind not in CODECS:
        got = f"content type {quote(kind)}" if kind else "no content type"
        raise UnsupportedMedia(f"{got}; send one of {', '.join(CODECS)}")
    return CODECS[kind]


JSON: Final = Codec(
    "application/json",
    lambda data, _: formats.load_json(data),
    lambda body, _: formats.dump_json(body),
    formats.read_base64,
    formats.pack_base64,
)
MSGPACK: Final = Codec(
    "application/msgpack",
    lambda data, _: formats.load_msgpack(data),
    lambda body, _: formats.dump_msgpack(body),
    formats.read_bin,
    lambda data: data,
)
PROTOBUF: Final = Codec("application/protobuf", protobuf.load, protobuf.dump, protobuf.read_bytes, bytes)
CODECS: Final[Mapping[str, Codec]] = {codec.content_type: codec for codec in (JSON, MSGPACK, PROTOBUF)}
