"""Convert encoded or raw images to uint8 [H W 3] RGB. Limits are checked before decoding; no other module decodes.

| input | result |
|---|---|
| PNG, JPEG, WebP | recognised by their first bytes, not by the file's name; any other format is BadImage |
| more than `max_bytes` encoded, or a header of more than `max_pixels` | ImageTooLarge, before a pixel is decoded |
| one side more than MAX_ASPECT times the other | ImageTooLarge, before a pixel is decoded |
| a PNG that does not begin with its only IHDR | BadImage, before a pixel is decoded |
| a JPEG of more than `synod.jpeg.MAX_SCANS` scans | BadImage, before a pixel is decoded |
| truncated or corrupt | BadImage (of a JPEG: as far as `synod.jpeg.check_scans` can detect) |
| CMYK or YCCK JPEG | converted to RGB by (255 - c)(255 - k) / 255, Adobe's inversion assumed; no colour management |
| alpha, a transparent palette entry, a transparent colour key | composited onto white |
| palette, 1-bit, greyscale | expanded to RGB |
| 16 bits a channel | the high byte, v // 256; a colour key of 16-bit samples is ignored |
| EXIF orientation 1..8, SHORT or LONG, or in `Raw profile type exif` | applied; absent or unreadable is 1 |
| animation of two or more frames (WebP, APNG) | BadImage: no score of one frame is the score of the whole |
| animation of at most one frame | that image (APNG: the default image) |
| JPEG with further images behind the first (MPO) | the first; the others are its previews or depths |
| ICC profile, gamma, text, other metadata | ignored, whatever its size |

The plugin classes are opened directly rather than by `Image.open`, whose limits are process-wide and only warn. Here
limits are arguments, and warning filters change nothing. Thread-safe.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from synod.contracts import ImageInput, ImageRef, Pixels, ScoreItem, is_raw
from synod.errors import BadImage, ImageTooLarge, InvalidItem, UnknownImage
from synod.jpeg import QuietJpeg, check_scan_count, check_scans

FORMATS: Final = ("PNG", "JPEG", "WebP")
MAX_ASPECT: Final = 200  # processors scale the short side to the model's size: the long one must stay affordable
STRIP_PIXELS: Final = 2**18  # that are converted at once
_RAW_EXIF: Final = "Raw profile type exif"  # ImageMagick's key for EXIF as hexadecimal text in a PNG
_MAX_PROFILE: Final = 2**18  # characters of it: EXIF has 64 KiB at most, two digits a byte
_READ_CHUNKS: Final = (b"tRNS", b"eXIf")  # the ancillary PNG chunks that change the pixels


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """`max_bytes` bounds an encoded image, `max_pixels` the H*W of any. Both > 0."""

    max_bytes: int
    max_pixels: int


def decode(data: bytes, limits: ImageLimits) -> Pixels:
    """Decode bytes to uint8 [H W 3], writable and contiguous. Raises BadImage, ImageTooLarge."""
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"{len(data)} encoded bytes, the limit is {limits.max_bytes}; send a smaller image")
    kind = _kind(data)
    try:
        with _open(kind, data, limits) as image:
            _check_size(*image.size, limits)
            if kind == "JPEG":
                check_scan_count(data)
            pixels = _rgb(image)
            exif = _exif(image.info)
            if kind == "JPEG":
                check_scans(data, image)
    except InvalidItem:
        raise
    except Exception as error:  # Pillow raises some ten undocumented kinds for hostile bytes
        why = str(error) or type(error).__name__
        raise BadImage(f"{len(data)} bytes of {kind} are truncated or corrupt ({why}); send the whole file") from None
    return _upright(pixels, _orientation(exif))


def pixels_of(image: Image.Image) -> Pixels:
    """Convert a PIL image to uint8 [H W 3] as its file would be: EXIF orientation applied, white behind alpha.

    A PNG's colour key that is not of 8 bits and damage of a JPEG are detected only before Pillow has loaded them: then
    it drops the depth and the coded data.
    Raises BadImage for an animation, a mode without a fixed range (I, F), or a file that cannot be read.
    """
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    _check_still(frames)
    if image.mode in ("I", "F"):
        raise BadImage(f"a PIL image of mode {image.mode}, which has no fixed range; convert it to RGB")
    try:
        if isinstance(image, JpegImageFile) and image.tile and image.fp is not None:  # not loaded yet
            place = image.fp.tell()
            image.fp.seek(0)
            check_scans(image.fp.read())
            image.fp.seek(place)
        if isinstance(image, PngImageFile):
            image = _with_settled_key(image)
        return _upright(_rgb(image), _orientation(_exif(image.info)))
    except InvalidItem:
        raise
    except Exception as error:  # as in `decode`
        why = str(error) or type(error).__name__
        raise BadImage(f"a PIL image of mode {image.mode} cannot be read ({why}); convert it to RGB") from None


def decode_item(item: ScoreItem, limits: ImageLimits) -> ScoreItem:
    """Decode the item's image and references to uint8 [H W 3]. Raises BadImage or ImageTooLarge that names the image,
    and UnknownImage for one that is still a digest."""
    image = None if item.image is None else _image(item.image, limits, "image")
    references = tuple([_image(r, limits, f"references[{i}]") for i, r in enumerate(item.references)])
    if image is item.image and not references:
        return item
    return replace(item, image=image, references=references)


def check_pixels(pixels: Pixels, limits: ImageLimits) -> Pixels:
    """Return a raw image, C-contiguous, if it is uint8 [H W 3] within `max_pixels`. It may be a read-only view.

    Raises BadImage, ImageTooLarge.
    """
    if not is_raw(pixels):
        raise BadImage(f"{pixels.dtype} {list(pixels.shape)}; a raw image is uint8 [H, W, 3] in RGB, H and W above 0")
    _check_size(pixels.shape[1], pixels.shape[0], limits)
    return np.ascontiguousarray(pixels)


def pixel_count(image: ImageInput) -> int:
    """Return width x height, of a file by its header alone; 0 where no size can be read, which `decode` refuses."""
    if not isinstance(image, bytes):
        return image.shape[0] * image.shape[1] if isinstance(image, np.ndarray) and image.ndim == 3 else 0
    try:
        kind = _kind(image)
        if kind == "PNG":
            width, height = _png_size(image)
        elif kind == "WebP":
            width, height = _webp_size(image)
        else:
            with QuietJpeg(io.BytesIO(image)) as jpeg:
                width, height = jpeg.size
    except Exception:  # as in `decode`
        return 0
    return int(width * height)


def encode_png(pixels: Pixels) -> bytes:
    """Encode uint8 [H W 3] as PNG, lossless."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def to_square(image: Pixels, side: int) -> Pixels:
    """Crop the centre and resize: uint8 [H W 3] -> [side side 3]."""
    height, width = image.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    cut = Image.fromarray(image[top : top + short, left : left + short])
    return np.array(cut.resize((side, side), Image.Resampling.BICUBIC))


def _image(image: ImageInput, limits: ImageLimits, path: str) -> Pixels:
    if isinstance(image, ImageRef):
        raise UnknownImage(f"{path}: no image {image.digest} is kept here; upload it first", [image.digest])
    try:
        return decode(image, limits) if isinstance(image, bytes) else check_pixels(image, limits)
    except InvalidItem as error:
        raise type(error)(f"{path}: {error}") from None


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"{width} x {height} pixels are {width * height}, the limit is {limits.max_pixels}; send a smaller image"
        )
    short, long = sorted((width, height))
    if short and long > MAX_ASPECT * short:
        raise ImageTooLarge(
            f"{width} x {height} pixels have sides of {-(-long // short)}:1, the limit is {MAX_ASPECT}:1; crop it"
        )


def _kind(data: bytes) -> str:
    """Return one of FORMATS, by the first bytes."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    start = f" that start with {data[:8].hex(' ')}" if data else ""
    raise BadImage(f"{len(data)} bytes{start} are not an image of a known format; send {', '.join(FORMATS)}")


def _open(kind: str, data: bytes, limits: ImageLimits) -> ImageFile.ImageFile:
    """Open an image: its header is read, no pixel is decoded."""
    if kind == "JPEG":
        return QuietJpeg(io.BytesIO(data))
    if kind == "WebP":
        _check_size(*_webp_size(data), limits)
        webp = WebPImageFile(io.BytesIO(data))
        _check_still(webp.n_frames)
        return webp
    _check_size(*_png_size(data), limits)
    pixels, profile = _still_png(data)
    image = PngImageFile(io.BytesIO(pixels))
    _settle_colour_key(image, depth=data[24])
    if profile is not None:
        image.info[_RAW_EXIF] = profile
    return image


def _check_still(frames: int) -> None:
    if frames > 1:
        raise BadImage(f"an animation of {frames} frames; send each frame as an image of its own")


def _settle_colour_key(image: PngImageFile, depth: int) -> None:
    """Bring a transparent colour key from sample units (0 .. 2^depth - 1) to the 8 bits Pillow decodes to."""
    key = image.info.get("transparency")
    if depth == 16:
        image.info.pop("transparency", None)
    elif depth in (2, 4) and image.mode == "L" and isinstance(key, int):
        image.info["transparency"] = key * 255 // (2**depth - 1)


def _with_settled_key(image: PngImageFile) -> PngImageFile:
    """Return the file with its colour key settled, where Pillow shows the depth. The caller's `info` stays."""
    key = image.info.get("transparency")
    raw = str(image.tile[0].args) if image.tile else ""
    depth = 16 if "16" in raw or (isinstance(key, tuple) and max(key) > 255) else 8
    depth = next((bits for bits in (2, 4) if raw == f"L;{bits}"), depth)
    image.load()
    image.info = dict(image.info)
    _settle_colour_key(image, depth)
    return image


def _still_png(data: bytes) -> tuple[bytes, str | None]:
    """Return the file with only the chunks that change its pixels, so that the default image of an animation is decoded
    and metadata has no limit; and the text of ImageMagick's EXIF profile.

    Raises BadImage for two frames or more, and for a second header: Pillow would take its size.
    """
    kept, at, profile = [data[:8]], 8, None
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if kind == b"acTL":
            _check_still(int.from_bytes(data[at + 8 : at + 12], "big"))
        elif kind == b"IHDR" and at > 8:
            raise BadImage(f"{len(data)} bytes of PNG with two headers (IHDR); encode the image again")
        elif kind in (b"tEXt", b"zTXt") and data.startswith(_RAW_EXIF.encode() + b"\0", at + 8):
            profile = _profile(data[at + 9 + len(_RAW_EXIF) : end - 4], compressed=kind == b"zTXt")
        if kind in _READ_CHUNKS or not kind[0] & 0x20:  # bit 5 of the first letter marks an ancillary chunk
            kept.append(data[at:end])
        at = end
        if kind == b"IEND":
            break
    else:
        kept.append(data[at:])  # the rest of a truncated file, for Pillow to refuse
    return b"".join(kept), profile


def _profile(body: bytes, *, compressed: bool) -> str | None:
    """Return the text of a tEXt or zTXt chunk after its keyword; None if it cannot be inflated."""
    try:
        text = zlib.decompressobj().decompress(body[1:], _MAX_PROFILE) if compressed else body[:_MAX_PROFILE]
    except zlib.error:
        return None
    return text.decode("latin-1")


def _png_size(data: bytes) -> tuple[int, int]:
    """Return (width, height). Raises BadImage unless the file begins with its header, as the format demands."""
    if data[12:16] != b"IHDR" or len(data) < 26:
        raise BadImage(f"{len(data)} bytes of PNG that do not begin with a header (IHDR); send the whole file")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of the canvas. Read here because Pillow's WebP decoder allocates its canvas on opening."""
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and body[:1] == b"\x2f":
        (bits,) = struct.unpack_from("<I", body, 1)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8X" and len(body) == 10:
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    raise BadImage(f"{len(data)} bytes of WebP without a readable header; the file is truncated or corrupt")


def _rgb(image: Image.Image) -> Pixels:
    """Return uint8 [H W 3]. Each conversion copies, at up to 4 bytes a pixel, so the image is converted in strips."""
    image.load()
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = _flat(image.crop((0, top, image.width, bottom)))
    return pixels


def _flat(image: Image.Image) -> Pixels:
    """Convert a loaded image to uint8 [H W 3]; it may be a read-only view."""
    if image.mode == "I;16":
        high = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(high[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _exif(info: Mapping[Any, Any]) -> bytes:
    """Return the EXIF bytes in Pillow's `info`, or those of ImageMagick's profile; empty if none are readable."""
    exif = info.get("exif")
    if isinstance(exif, bytes):
        return exif
    profile = info.get(_RAW_EXIF)
    if not isinstance(profile, str):
        return b""
    try:
        return bytes.fromhex("".join(profile.split("\n")[3:]))  # after an empty line, the name and the length
    except ValueError:
        return b""


def _orientation(exif: bytes) -> int:
    """Return the EXIF orientation 1..8 in the first directory of the TIFF structure; 1 if none is readable."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for i in range(entries):
            at = directory + 2 + 12 * i
            tag, kind = struct.unpack_from(order + "HH", tiff, at)
            if tag == 0x0112 and kind in (3, 4):  # SHORT as EXIF has it, or LONG
                (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), tiff, at + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation: 1 as is, 2 mirrored, 3 half turn, 4 flipped, 5 transposed, 6 and 8 quarter turns,
    7 transposed about the other diagonal."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
