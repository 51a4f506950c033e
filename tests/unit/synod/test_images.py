"""Bytes to pixels, against second implementations: exif_transpose, the compositing formula, hand-made PNGs."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image, ImageOps

from synod import images
from synod.contracts import ImageRef, Pixels, ScoreItem
from synod.digest import digest_of
from synod.errors import BadImage, ImageTooLarge, InvalidItem, UnknownImage
from synod.images import ImageLimits, check_pixels, decode, decode_item, encode_png

LIMITS = ImageLimits(max_bytes=2**22, max_pixels=2**20)
RNG = np.random.default_rng(7)
NOISE: Pixels = RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8)
SMOOTH: Pixels = np.array(Image.fromarray(NOISE[:4, :6]).resize((96, 64), Image.Resampling.BICUBIC))
FORMATS: dict[str, dict[str, Any]] = {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}}


def encoded(source: Image.Image | Pixels, kind: str, **options: Any) -> bytes:
    image = source if isinstance(source, Image.Image) else Image.fromarray(source)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes, after: bytes = b"") -> bytes:
    """A PNG by hand; `rows` hold the filter bytes, `extra` chunks stand before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body


def jpeg_with_exif(exif: bytes) -> bytes:
    plain = encoded(SMOOTH, "JPEG")
    body = b"Exif\0\0" + exif
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]


def webp_header(width: int, height: int) -> bytes:
    """An extended WebP that declares a canvas but has no image data."""
    canvas = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + canvas


# --- formats and values ---


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_formats_come_back_as_they_went(kind: str) -> None:
    pixels = decode(encoded(NOISE, kind, **FORMATS[kind]), LIMITS)
    np.testing.assert_array_equal(pixels, NOISE)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_back_close(kind: str) -> None:
    pixels = decode(encoded(SMOOTH, kind, quality=95), LIMITS)
    assert np.abs(pixels.astype(int) - SMOOTH).mean() < 3


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_encode_png_is_decodes_inverse(height: int, width: int, random: Any) -> None:
    pixels = np.frombuffer(random.randbytes(height * width * 3), np.uint8).reshape(height, width, 3)
    np.testing.assert_array_equal(decode(encode_png(pixels), LIMITS), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS)
def test_exif_orientation_is_undone_as_exif_transpose_does(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(NOISE, kind, exif=exif, **FORMATS[kind])
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    pixels = decode(data, LIMITS)
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.shape == ((40, 24, 3) if orientation >= 5 else (24, 40, 3))
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_of_either_byte_order_by_hand(order: str) -> None:
    """Orientation 6, "turn it clockwise": the first stored row becomes the last column."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    exif = mark + struct.pack(order + "IHHHIH2xI", 8, 1, 0x0112, 3, 1, 6, 0)
    upright = decode(encoded(NOISE, "PNG", exif=b"Exif\0\0" + exif), LIMITS)
    np.testing.assert_array_equal(upright[:, -1], NOISE[0])


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*" + struct.pack(">IH", 8, 65535),
        b"II*\0" + struct.pack("<IHHHIHH", 8, 1, 0x0112, 3, 1, 9, 0),
        b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 4, 1, 2**31),
        b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x011A, 5, 1, 0xFFFFFFF0),
        b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x011A, 5, 2**31, 26),
        b"not TIFF at all",
    ],
)
def test_unreadable_exif_is_no_orientation_and_no_warning(exif: bytes) -> None:
    data = jpeg_with_exif(exif)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pixels = decode(data, LIMITS)
    assert not seen
    np.testing.assert_array_equal(pixels, decode(encoded(SMOOTH, "JPEG"), LIMITS))


def test_cmyk_jpeg_becomes_rgb_by_the_stated_formula() -> None:
    cmyk = np.array(Image.fromarray(RNG.integers(0, 256, (2, 3, 4), np.uint8), "CMYK").resize((48, 32)))
    data = encoded(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=100, subsampling=0)
    with Image.open(io.BytesIO(data)) as opened:
        stored = np.asarray(opened).astype(float)  # what the file holds: c m y k, after JPEG's loss
    expected = (255 - stored[:, :, :3]) * (255 - stored[:, :, 3:]) / 255
    assert np.abs(decode(data, LIMITS) - expected).max() <= 1
    assert np.abs(stored - cmyk).mean() < 6  # and that is about what went in


def test_alpha_is_composited_onto_white() -> None:
    rgba = RNG.integers(0, 256, (16, 16, 4), dtype=np.uint8)
    colour, alpha = rgba[:, :, :3].astype(float), rgba[:, :, 3:] / 255
    pixels = decode(encoded(rgba, "PNG"), LIMITS)
    assert np.abs(pixels - (colour * alpha + 255 * (1 - alpha))).max() <= 1
    grey_alpha = rgba[:, :, [0, 3]]
    pixels = decode(encoded(Image.fromarray(grey_alpha, "LA"), "PNG"), LIMITS)
    assert np.abs(pixels - (colour[:, :, :1] * alpha + 255 * (1 - alpha))).max() <= 1
    webp = decode(encoded(rgba, "WEBP", lossless=True, exact=True), LIMITS)
    assert np.abs(webp - (colour * alpha + 255 * (1 - alpha))).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("strip", [1, 7 * 40, 24 * 40])
def test_images_are_converted_in_strips(mode: str, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The strips give what the whole image gives, and none is larger than it must be."""
    noise = RNG.integers(0, 256, (24, 40, 4), np.uint8)
    image = Image.fromarray(noise).convert(mode) if mode != "I;16" else Image.fromarray(noise.view(np.uint16)[:, :, 0])
    whole, heights, convert = images._flat(image), list[int](), images._flat
    monkeypatch.setattr(images, "STRIP_PIXELS", strip)
    monkeypatch.setattr(images, "_flat", lambda part: (heights.append(part.height), convert(part))[1])
    np.testing.assert_array_equal(images.pixels_of(image), whole)
    assert sum(heights) == 24
    assert max(heights) == max(1, strip // 40)


def test_palette_with_and_without_transparency() -> None:
    palette = chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 50, 0, 255, 0]))
    rows = b"\0\0\1\2"
    opaque = [[10, 20, 30], [200, 100, 50], [0, 255, 0]]
    assert decode(png(3, 1, 8, 3, rows, palette), LIMITS).tolist() == [opaque]
    one_gone = decode(png(3, 1, 8, 3, rows, palette, chunk(b"tRNS", b"\xff\0")), LIMITS)
    assert one_gone.tolist() == [[opaque[0], [255, 255, 255], opaque[2]]]
    half = decode(png(3, 1, 8, 3, rows, palette, chunk(b"tRNS", b"\xff\x80")), LIMITS)
    assert np.abs(half[0, 1] - (np.array(opaque[1]) * 128 / 255 + 255 * 127 / 255)).max() <= 1


@pytest.mark.parametrize(
    ("depth", "row", "grey"),
    [(1, b"\x40", [0, 255]), (2, b"\xd0", [255, 85]), (4, b"\x1f", [17, 255]), (8, b"\x01\xff", [1, 255])],
)
def test_greyscale_of_every_depth_and_its_colour_key(depth: int, row: bytes, grey: list[int]) -> None:
    pixels = decode(png(2, 1, depth, 0, b"\0" + row), LIMITS)
    assert pixels.tolist() == [[[g] * 3 for g in grey]]
    key = grey[0] * (2**depth - 1) // 255
    keyed = decode(png(2, 1, depth, 0, b"\0" + row, chunk(b"tRNS", struct.pack(">H", key))), LIMITS)
    assert keyed.tolist() == [[[255] * 3, [grey[1]] * 3]]


def test_rgb_colour_key_is_white() -> None:
    data = png(2, 1, 8, 2, b"\0" + bytes([1, 2, 3, 4, 5, 6]), chunk(b"tRNS", struct.pack(">3H", 1, 2, 3)))
    assert decode(data, LIMITS).tolist() == [[[255] * 3, [4, 5, 6]]]


def test_sixteen_bits_give_the_high_byte() -> None:
    grey = np.array([[0, 255, 256, 0x1234, 65535]], np.uint16)
    assert decode(encoded(Image.fromarray(grey), "PNG"), LIMITS).tolist() == [[[g >> 8] * 3 for g in grey[0].tolist()]]
    rgb = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 1, 2, 0xFFFF)
    assert decode(png(2, 1, 16, 2, b"\0" + rgb), LIMITS).tolist() == [[[0x12, 0x56, 0x9A], [0, 0, 255]]]
    key = chunk(b"tRNS", struct.pack(">3H", 0x12, 0x56, 0x9A))  # its samples are none of the image's
    assert decode(png(2, 1, 16, 2, b"\0" + rgb, key), LIMITS).tolist() == [[[0x12, 0x56, 0x9A], [0, 0, 255]]]


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
@pytest.mark.parametrize("count", [2, 3])
def test_an_animation_is_refused_before_a_frame_is_decoded(
    kind: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(count)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **FORMATS[kind])
    monkeypatch.setattr(images, "_rgb", lambda image: pytest.fail("decoded"))
    with pytest.raises(BadImage, match=f"^an animation of {count} frames; send each frame as an image of its own$"):
        decode(data, LIMITS)
    with pytest.raises(BadImage, match=r"^references\[0\]: an animation of"):
        decode_item(ScoreItem(references=(data,)), LIMITS)


@pytest.mark.parametrize("count", [0, 1])
def test_an_animation_of_one_frame_is_an_image(count: int) -> None:
    """APNG: the default image, be it the frame or not, and without a warning of Pillow's."""
    chunks = chunk(b"acTL", struct.pack(">II", count, 0)) + chunk(
        b"fcTL", struct.pack(">5IHHBB", 0, 9, 9, 5, 5, 1, 1, 0, 0)
    )
    assert decode(png(1, 1, 8, 2, b"\0abc", chunks), LIMITS).tolist() == [[[97, 98, 99]]]
    webp = encoded(NOISE, "WEBP", save_all=True, lossless=True)
    np.testing.assert_array_equal(decode(webp, LIMITS), NOISE)


def test_a_jpeg_with_a_second_image_gives_its_first() -> None:
    first, second = Image.fromarray(SMOOTH), Image.fromarray(255 - SMOOTH)
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert data.count(b"\xff\xd8\xff") >= 2
    assert np.abs(decode(data, LIMITS).astype(int) - SMOOTH).mean() < 3


# --- limits, before decoding ---


@pytest.mark.parametrize(
    "data",
    [
        png(30_000, 30_000, 8, 2, b"\0"),
        png(30_000, 30_000, 1, 0, bytes(30_000 * 3751)),  # complete: 110 MB of rows in a few hundred kB
        webp_header(16_384, 16_384),
        encoded(np.zeros((8, 8, 3), np.uint8), "JPEG").replace(b"\0\x08\0\x08\x03", b"\x75\x30\x75\x30\x03", 1),
    ],
    ids=["png header", "png bomb", "webp canvas", "jpeg header"],
)
def test_too_many_pixels_are_refused_before_a_pixel_is_decoded(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_rgb", lambda image: pytest.fail("decoded"))
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLarge, match=r"\d{5} x \d{5} pixels are \d+, the limit is 1048576"):
            decode(data, LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 2**20 + 2 * len(data)
    finally:
        tracemalloc.stop()


def test_our_limit_rules_where_pillow_would_warn_or_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for kind in ("PNG", "JPEG"):
        assert decode(encoded(NOISE, kind), LIMITS).shape == NOISE.shape


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(ImageTooLarge, match="11 encoded bytes, the limit is 10"):
        decode(b"x" * 11, ImageLimits(max_bytes=10, max_pixels=10))


def test_limits_are_inclusive() -> None:
    data = encode_png(NOISE)
    assert decode(data, ImageLimits(len(data), 24 * 40)).shape == NOISE.shape
    with pytest.raises(ImageTooLarge):
        decode(data, ImageLimits(len(data), 24 * 40 - 1))
    with pytest.raises(ImageTooLarge):
        decode(data, ImageLimits(len(data) - 1, 24 * 40))


@pytest.mark.parametrize("shape", [(2, 401), (401, 2)])
def test_long_thin_images_are_refused(shape: tuple[int, int]) -> None:
    thin = np.zeros((*shape, 3), np.uint8)
    match = rf"{shape[1]} x {shape[0]} pixels have sides of 201:1, the limit is 200:1; crop it"
    for refuse in (lambda: check_pixels(thin, LIMITS), lambda: decode(encode_png(thin), LIMITS)):
        with pytest.raises(ImageTooLarge, match=match):
            refuse()
    assert decode(encode_png(thin[:400, :400]), LIMITS).shape == thin[:400, :400].shape


# --- hostile bytes ---


def test_png_whose_size_stands_elsewhere_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that is read at another place than Pillow reads it would pass the limit of a request's pixels."""
    monkeypatch.setattr(images, "_rgb", lambda image: pytest.fail("decoded"))
    large = png(1024, 1024, 8, 2, bytes(1024 * 3073))
    signature, header, rest = large[:8], large[8:33], large[33:]
    hidden = signature + chunk(b"tEXt", struct.pack(">II", 1, 1)) + header + rest
    second = signature + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)) + header + rest
    assert images.pixel_count(hidden) == 0
    with pytest.raises(BadImage, match=r"do not begin with a header \(IHDR\)"):
        decode(hidden, LIMITS)
    with pytest.raises(BadImage, match="two headers"):
        decode(second, LIMITS)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM"])
def test_other_formats_are_named_as_refused(kind: str) -> None:
    with pytest.raises(BadImage, match="send PNG, JPEG, WebP"):
        decode(encoded(NOISE, kind), LIMITS)


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"%!PS-Adobe", b"RIFF\0\0\0\0WAVE"])
def test_what_is_no_image_is_bad(data: bytes) -> None:
    with pytest.raises(BadImage, match=f"^{len(data)} bytes"):
        decode(data, LIMITS)


@pytest.mark.parametrize("tenth", range(10))
@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_at_every_tenth(kind: str, tenth: int) -> None:
    data = encoded(SMOOTH, kind, **FORMATS[kind])
    with pytest.raises(BadImage):
        decode(data[: len(data) * tenth // 10], LIMITS)


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_compressed_metadata_of_any_size_is_passed_over(name: bytes, place: str) -> None:
    bomb = zlib.compress(bytes(50 * 2**20), 9)
    body = b"key\0\1\0\0\0" + bomb if name == b"iTXt" else b"key\0\0" + bomb
    extra = chunk(name, body)
    data = png(1, 1, 8, 2, b"\0abc", extra) if place == "before" else png(1, 1, 8, 2, b"\0abc", after=extra)
    np.testing.assert_array_equal(decode(data, LIMITS), [[[97, 98, 99]]])


@effort(max_examples=300)
@given(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"]), st.binary(max_size=200))
@example(b"RIFF\0\0\0\0WEBP", b"VP8 ")
def test_random_bytes_raise_only_invalid_item(magic: bytes, rest: bytes) -> None:
    with pytest.raises(InvalidItem):
        decode(magic + rest, LIMITS)


SAMPLES = [
    encoded(NOISE, "PNG"),
    encoded(Image.fromarray(NOISE).quantize(16), "PNG"),
    encoded(NOISE, "JPEG"),
    encoded(NOISE, "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"),
    encoded(NOISE, "WEBP"),
    encoded(NOISE, "WEBP", lossless=True),
    encoded(NOISE, "PNG", save_all=True, append_images=[Image.fromarray(NOISE[::-1])]),
]


@effort(max_examples=600)
@given(st.data())
def test_mutated_images_decode_or_raise_only_invalid_item(data: st.DataObject) -> None:
    mutant = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(len(mutant) - 1, data.draw(st.sampled_from([64, 4096])))))
        mutant[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        pixels = decode(bytes(mutant), LIMITS)
    except InvalidItem:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3


def test_decoding_in_many_threads_gives_each_its_own_image() -> None:
    images = [RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(64)]
    data = [encode_png(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        for image, decoded in zip(images, pool.map(lambda one: decode(one, LIMITS), data), strict=True):
            np.testing.assert_array_equal(decoded, image)


# --- items and raw arrays ---


def test_an_item_is_decoded_whole() -> None:
    item = ScoreItem(encode_png(NOISE), "a cat", (encode_png(NOISE[::-1]), NOISE))
    decoded = decode_item(item, LIMITS)
    np.testing.assert_array_equal(decoded.pixels(), NOISE)
    first, second = decoded.reference_pixels()
    np.testing.assert_array_equal(first, NOISE[::-1])
    np.testing.assert_array_equal(second, NOISE)
    assert decoded.prompt == "a cat"
    assert decode_item(ScoreItem(), LIMITS) == ScoreItem()


def test_an_item_says_which_image_is_bad() -> None:
    with pytest.raises(BadImage, match=r"^image: 1 bytes"):
        decode_item(ScoreItem(b"x"), LIMITS)
    with pytest.raises(BadImage, match=r"^references\[1\]: 1 bytes"):
        decode_item(ScoreItem(None, None, (NOISE, b"x")), LIMITS)
    with pytest.raises(ImageTooLarge, match=r"^references\[0\]: 40 x 24 pixels are 960, the limit is 959"):
        decode_item(ScoreItem(None, None, (NOISE,)), ImageLimits(10, 959))


def test_an_image_that_is_still_a_digest_is_unknown() -> None:
    digest = digest_of(b"x")
    with pytest.raises(UnknownImage, match=rf"^references\[1\]: no image {digest} is kept here") as caught:
        decode_item(ScoreItem(references=(NOISE, ImageRef(digest))), LIMITS)
    assert caught.value.digests == (digest,)


@pytest.mark.parametrize(
    "pixels",
    [
        NOISE.astype(np.float32) / 255,
        NOISE.astype(np.int16),
        NOISE[:, :, :1],
        NOISE[:, :, 0],
        NOISE.transpose(2, 0, 1),
        NOISE[None],
        NOISE[:0],
        NOISE[:, :0],
    ],
    ids=lambda pixels: f"{pixels.dtype}{list(pixels.shape)}",
)
def test_raw_images_of_another_kind_are_bad(pixels: Pixels) -> None:
    with pytest.raises(BadImage, match=r"a raw image is uint8 \[H, W, 3\]"):
        check_pixels(pixels, LIMITS)


def test_raw_images_come_contiguous_and_uncopied_where_they_can() -> None:
    assert check_pixels(NOISE, LIMITS) is NOISE
    turned = check_pixels(NOISE[::-1], LIMITS)
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(turned, NOISE[::-1])
