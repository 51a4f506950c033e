"""The digest of an image: equal to any BLAKE2b implementation, and unique for one image."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synod.contracts import Digest
from synod.digest import digest_of
from synod.errors import BadImage
from synod.reader import Node
from synod.records import read

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("b2sum") is None, reason="coreutils' b2sum is the second implementation")
@pytest.mark.parametrize(
    ("image", "hashed"),
    [(b"\x89PNG", b"encoded\n\x89PNG"), (b"", b"encoded\n"), (PIXELS, b"raw 2 3 3\n" + PIXELS.tobytes())],
    ids=["encoded", "empty", "raw"],
)
def test_the_digest_is_blake2b_of_header_and_bytes(image: bytes, hashed: bytes) -> None:
    found = subprocess.run(["b2sum", "-l", "256"], input=hashed, capture_output=True, check=True).stdout
    assert digest_of(image) == "blake2b-256:" + found.split()[0].decode()


def test_the_memory_layout_does_not_matter() -> None:
    for view in (PIXELS[::-1, :, ::-1], PIXELS.transpose(1, 0, 2), np.asfortranarray(PIXELS)):
        assert digest_of(view) == digest_of(np.ascontiguousarray(view))


@given(st.binary(min_size=12, max_size=12))
def test_the_digest_covers_shape_and_encoding(data: bytes) -> None:
    raw = np.frombuffer(data, np.uint8)
    images = [data, b"raw 1 4 3\n" + data, *(raw.reshape(*side, 3) for side in ((1, 4), (2, 2), (4, 1)))]
    digests = {digest_of(image) for image in images}
    assert len(digests) == len(images)
    assert all(read(Digest, Node(digest)) for digest in digests)


@pytest.mark.parametrize("pixels", [PIXELS.astype(np.int16), PIXELS[0], PIXELS[..., :2], PIXELS[:0]])
def test_an_invalid_array_is_refused(pixels: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(BadImage, match=r"a raw image is uint8 \[H, W, 3\]"):
        digest_of(pixels)
