"""The wire formats: bytes <-> records, and the table from content type to codec. Pure; no file, no net.

`synod.tree` and `synod.answers` say which fields there are, `synod.formats` and `synod.protobuf` how each format
carries them. All are read strictly and bounded: an unknown or a repeated key, a wrong type, NaN, or too many values
is an InvalidRequest that names the path (protobuf skips unknown fields). Equal bodies give equal records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from synod import answers, formats, protobuf, tree
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


@dataclass(frozen=True, slots=True)
class Codec:
    """One format. Every `decode_*` raises InvalidRequest, naming the path of the field that is wrong.

    `loads` and `dumps` take the name of the message beside it, for the format whose bytes do not describe themselves.
    """

    content_type: str
    loads: Callable[[bytes, str], Any]
    dumps: Callable[[tree.Tree, str], bytes]
    read_bytes: tree.ReadBytes
    pack_bytes: tree.PackBytes

    def decode_request(self, data: bytes) -> ScoreRequest:
        """Raw images are read-only views of what was read. Raises InvalidRequest, PayloadTooLarge."""
        return tree.read_request(self._parse(data, "ScoreRequest"), self.read_bytes)

    def encode_request(self, request: ScoreRequest) -> bytes:
        """Raises InvalidRequest for an image, weight or truth that no service would take."""
        return self._dump(tree.request_tree(request, self.pack_bytes), "ScoreRequest")

    def decode_stream_request(self, data: bytes) -> ScoreRequest:
        """One of the requests of a gRPC stream; elsewhere a request like any. Raises as `decode_request`."""
        return tree.read_request(self._parse(data, "ScoreStreamRequest"), self.read_bytes)

    def encode_stream_request(self, request: ScoreRequest) -> bytes:
        """Raises as `encode_request`."""
        return self._dump(tree.request_tree(request, self.pack_bytes), "ScoreStreamRequest")

    def decode_response(self, data: bytes) -> ScoreResponse:
        """Raises InvalidRequest."""
        return answers.read_response(self._parse(data, "ScoreResponse"))

    def encode_response(self, response: ScoreResponse) -> bytes:
        """Never raises: a score that cannot be carried is sent as a failure, beside its neighbours' scores."""
        return self.dumps(answers.response_tree(response), "ScoreResponse")

    def decode_error(self, data: bytes) -> SynodError:
        """The error of a body {"error": {code, retryable, message, ..}}. Raises InvalidRequest when it is none."""
        return answers.read_error(self._parse(data, "Error"))

    def encode_error(self, error: SynodError) -> bytes:
        """The body {"error": {code, retryable, message, ..}}; the status is the error's `http_status`."""
        return self.dumps(answers.error_tree(error), "Error")

    def decode_part(self, data: bytes) -> Part:
        """A part of a streamed answer: a line of NDJSON, a message of gRPC. Raises InvalidRequest."""
        return answers.read_part(self._parse(data, "ScoreStreamResponse"))

    def encode_part(self, part: Part) -> bytes:
        """Never raises. JSON gives one line, without its end."""
        return self.dumps(answers.part_tree(part), "ScoreStreamResponse")

    def decode_put(self, data: bytes) -> PutImagesRequest:
        """Raises InvalidRequest, PayloadTooLarge."""
        return tree.read_put(self._parse(data, "PutImagesRequest"), self.read_bytes)

    def encode_put(self, request: PutImagesRequest) -> bytes:
        """Raises InvalidRequest for an image that no service would take."""
        return self._dump(tree.put_tree(request, self.pack_bytes), "PutImagesRequest")

    def decode_digests(self, data: bytes) -> PutImagesResponse:
        """Raises InvalidRequest."""
        return answers.read_digests(self._parse(data, "PutImagesResponse"))

    def encode_digests(self, response: PutImagesResponse) -> bytes:
        """Never raises."""
        return self.dumps(answers.digests_tree(response), "PutImagesResponse")

    def decode_catalogue(self, data: bytes) -> Catalogue:
        """Raises InvalidRequest."""
        return answers.read_catalogue(self._parse(data, "ListScorersResponse"))

    def encode_catalogue(self, catalogue: Catalogue) -> bytes:
        """Never raises."""
        return self.dumps(answers.catalogue_tree(catalogue), "ListScorersResponse")

    def decode_object(self, data: bytes) -> dict[str, Any]:
        """An object of free-form fields: the answer of `GET /v1/scorers`, or of ListScorers. Raises InvalidRequest."""
        return self._parse(data, "ListScorersResponse").table(Node.json_value)

    def _dump(self, body: tree.Tree, message: str) -> bytes:
        try:
            return self.dumps(body, message)
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
