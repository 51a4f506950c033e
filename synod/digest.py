"""Compute the digest by which a request names a stored image. Pure functions.

The digest is 256-bit BLAKE2b over a header line and the image's bytes as they are sent:

    encoded    "encoded\n" and the file            { printf 'encoded\n'; cat cat.png; } | b2sum -l 256
    raw        "raw H W 3\n" and H * W * 3 bytes   { printf 'raw 480 640 3\n'; cat cat.rgb; } | b2sum -l 256

It identifies bytes, not pixels: a PNG and its decoded pixels have different digests.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from synod.contracts import DIGEST_PREFIX, ImageData, is_raw
from synod.errors import BadImage


def digest_of(image: ImageData) -> str:
    """Return the digest of encoded bytes, or of uint8 [H W 3] in any memory layout. Raises BadImage otherwise."""
    if isinstance(image, bytes):
        return _digest(b"encoded\n", image)
    if not is_raw(image):
        raise BadImage(f"{image.dtype} {list(image.shape)}; a raw image is uint8 [H, W, 3] in RGB")
    height, width, channels = image.shape
    return _digest(f"raw {height} {width} {channels}\n".encode(), np.ascontiguousarray(image).reshape(-1).data)


def _digest(header: bytes, data: bytes | memoryview) -> str:
    digest = blake2b(header, digest_size=32)
    digest.update(data)
    return DIGEST_PREFIX + digest.hexdigest()
