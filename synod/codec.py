"""Encode and decode records in the three wire formats, and find the codec of a content type. Pure: no file, no network.

`synod.records` reads and writes the fields, `synod.formats` and `synod.protobuf` the bytes of each format. Reading is
strict and bounded: an unknown or a repeated key, a wrong type, NaN, or too many values is an InvalidRequest that names
the path (protobuf skips unknown fields). Equal bodies give equal records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from synod import formats, protobuf, records
from synod.contracts import Catalogue, Part, PutImagesRequest, PutImagesResponse, ScoreRequest, ScoreResponse
from synod.errors import InvalidRequest, SynodError, UnsupportedMedia
from synod.reader import Node, quote

T = TypeVar("T")
_PART: Final = cast("type[Part]", Part)


def _decoder(kind: type[T], message: str) -> Callable[[Codec, bytes], T]:
    """Return the method that decodes `message` of reward.proto to a `kind`."""

    def decode(self: Codec, data: bytes) -> T:
        """Raise InvalidRequest, PayloadTooLarge. Raw images are read-only views of what was read."""
        return records.read(kind, self.parse(data, message), self.read_bytes)

    return decode


def _encoder(kind: type[T], message: str) -> Callable[[Codec, T], bytes]:
    """Return the method that encodes a `kind` as `message` of reward.proto."""
    refused = (ValueError, TypeError, OverflowError) if message.endswith("Request") else ()

    def encode(self: Codec, record: T) -> bytes:
        """Raise InvalidRequest for a request that every service would refuse. A response never raises: a score that no
        format can carry is sent as a failure among the other scores."""
        try:
            return self.dumps(records.write(kind, record, self.pack_bytes), message)
        except refused as error:
            raise InvalidRequest(f"the request cannot be sent as {self.content_type}: {error}") from None

    return encode


@dataclass(frozen=True, slots=True)
class Codec:
    """Decode and encode one format. A message of JSON is one line, without its end.

    `loads` and `dumps` also take the name of the message, for the format whose bytes do not describe themselves.
    """

    content_type: str
    loads: Callable[[bytes, str], Any]
    dumps: Callable[[records.Tree, str], bytes]
    read_bytes: records.ReadBytes
    pack_bytes: records.PackBytes

    decode_request = _decoder(ScoreRequest, "ScoreRequest")
    encode_request = _encoder(ScoreRequest, "ScoreRequest")
    decode_stream_request = _decoder(ScoreRequest, "ScoreStreamRequest")  # of gRPC; the other formats have one request
    encode_stream_request = _encoder(ScoreRequest, "ScoreStreamRequest")
    decode_response = _decoder(ScoreResponse, "ScoreResponse")
    encode_response = _encoder(ScoreResponse, "ScoreResponse")
    decode_part = _decoder(_PART, "ScoreStreamResponse")  # of a streamed response: a line of NDJSON, a message of gRPC
    encode_part = _encoder(_PART, "ScoreStreamResponse")
    decode_put = _decoder(PutImagesRequest, "PutImagesRequest")
    encode_put = _encoder(PutImagesRequest, "PutImagesRequest")
    decode_digests = _decoder(PutImagesResponse, "PutImagesResponse")
    encode_digests = _encoder(PutImagesResponse, "PutImagesResponse")
    decode_catalogue = _decoder(Catalogue, "ListScorersResponse")
    encode_catalogue = _encoder(Catalogue, "ListScorersResponse")

    def decode_error(self, data: bytes) -> SynodError:
        """Return the error of a body {"error": {code, retryable, message, ..}}. Raises InvalidRequest otherwise."""
        return records.read_error(self.parse(data, "Error"))

    def encode_error(self, error: SynodError) -> bytes:
        """Return the body {"error": {code, retryable, message, ..}}; the status is the error's `http_status`."""
        return self.dumps(records.error_tree(error), "Error")

    def decode_object(self, data: bytes) -> dict[str, Any]:
        """Return the free-form object of a `GET /v1/scorers` or ListScorers response. Raises InvalidRequest."""
        return self.parse(data, "ListScorersResponse").table(Node.json_value)

    def parse(self, data: bytes, message: str) -> Node:
        """Return the tree of a body, its fields unchecked. Raises InvalidRequest, PayloadTooLarge."""
        try:
            return Node(self.loads(data, message))
        except SynodError:
            raise
        except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
            why = f"{type(error).__name__}: {error}" if not isinstance(error, RecursionError) else "nested too deep"
            raise InvalidRequest(f"the body is not {self.content_type}: {why}") from None


def codec_for(content_type: str | None) -> Codec:
    """Return the codec of a Content-Type header; its parameters are ignored. Raises UnsupportedMedia."""
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
