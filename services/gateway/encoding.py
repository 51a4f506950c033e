"""Decompress request bodies (Content-Encoding gzip and deflate), never beyond the limit of a body. No I/O."""

from __future__ import annotations

import zlib
from typing import Final

from synod.errors import InvalidRequest, PayloadTooLarge, UnsupportedMedia
from synod.reader import quote

_WINDOW_BITS: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # RFC 9110, 8.4.1: gzip's format, and zlib's
_FORMATS: Final = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "zlib"}
ENCODINGS: Final = ("gzip", "deflate")


def check_encoding(header: str) -> str | None:
    """Return the encoding that a Content-Encoding header names, None for none. Raises UnsupportedMedia for others."""
    encoding = header.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in _WINDOW_BITS:
        raise UnsupportedMedia(
            f"content encoding {quote(encoding)}; send one of {', '.join(ENCODINGS)}, or the body as it is"
        )
    return encoding


def decompress(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """Return the content of a body, producing at most one byte more than `limit_bytes`.

    Raises PayloadTooLarge for content over the limit, InvalidRequest for a body that is truncated or invalid.
    """
    inflate = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        content = inflate.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise InvalidRequest(
            f"the body is not {encoding} ({error}), as its Content-Encoding says; send the {_FORMATS[encoding]} "
            "format, or no Content-Encoding"
        ) from None
    if len(content) > limit_bytes:
        raise PayloadTooLarge(
            f"the {len(body)} bytes of the {encoding} body decode to more than {limit_bytes} bytes "
            "([limits] max_body_bytes); send several requests"
        )
    if not inflate.eof:
        raise InvalidRequest(f"the {encoding} body is cut off after {len(body)} bytes; send the whole of it")
    if inflate.unused_data:
        raise InvalidRequest(
            f"{len(inflate.unused_data)} bytes follow the {encoding} body; compress the whole content as one stream"
        )
    return content
