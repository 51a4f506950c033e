"""Check that a JPEG's coded data is complete. libjpeg only warns where it is not, and Pillow hides its warnings.

Copies of the file are decoded and compared. Files that are not progressive are decoded at an eighth of the size, where
the cost is nearly that of the Huffman codes alone.

1. The image declared one row of MCUs taller (files with one scan). Whole data ends with the last MCU: the first MCU of
   the new row is what remains of the last byte, and libjpeg gives the others zero coefficients. Where data is left
   over, blocks were read out of step, and the others show it. Where data is missing, the first has zeros too.
2. PADDING before every marker of the coded data, where 1 does not prove that none is missing. The decoder has stopped
   before it where the data is whole; where data is missing, it goes on into the padding, and the pixels change.

Restart markers must come in order and number, and the scans of a progressive file must give every coefficient. Not
detected are damage that keeps the number of blocks between two markers (JPEG has no checksum), data left over in a scan
of a progressive file or before a restart marker, and damage to arithmetic coding.
"""

from __future__ import annotations

import io
import re
import struct
from typing import Final

import numpy as np
from PIL import Image, ImageChops
from PIL.JpegImagePlugin import JpegImageFile

from synod.contracts import Pixels
from synod.errors import BadImage

PADDING: Final = bytes([0x55, 0x2A, 0x94, 0x6B, 0xD5, 0x1C, 0xA3, 0x72]) * 8  # no 0xFF, and no code repeats evenly
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MARKER: Final = re.compile(rb"\xff[^\x00\xff]")  # 0xFF00 is a stuffed byte; bytes 0xFF may fill the space before it
MAX_SCANS: Final = 100  # encoders write 20 at most; one of a few bytes costs a pass over the whole image


class QuietJpeg(JpegImageFile):
    """A JPEG that Pillow opens without reading its dpi: that makes it parse, and warn about, hostile EXIF."""

    def _read_dpi_from_exif(self) -> None:
        """Do nothing."""


def check_scan_count(data: bytes) -> None:
    """Raise BadImage for a JPEG of more than MAX_SCANS scans, without decoding it."""
    if data.count(b"\xff\xda") <= MAX_SCANS:  # metadata may have these bytes, too
        return
    at, scans = 2, 0
    while found := _MARKER.search(data, at):
        at, marker = found.end(), data[found.end() - 1]
        if marker == 0xD9 or at + 2 > len(data):
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        scans += marker == 0xDA
        at += int.from_bytes(data[at : at + 2], "big")
    if scans > MAX_SCANS:
        raise BadImage(f"a JPEG of {scans} scans, the limit is {MAX_SCANS}; encode it again")


def check_scans(data: bytes, decoded: Image.Image | None = None) -> None:
    """Raise BadImage for a JPEG that Pillow decodes, but whose coded data is damaged.

    `decoded` is Pillow's image of `data` at full size and in the file's own mode. Without it, a progressive file is
    decoded once more.
    """
    ends: list[int] = []  # of coded data: where its markers are
    exact: set[tuple[int, int]] = set()  # (component, coefficient) that a progressive scan brought to its last bit
    at, frame, scans, restarts, total, interval = 2, 0, 0, 0, 0, 0
    while opening := _MARKER.search(data, at):
        at = opening.end() - 2
        marker = data[at + 1]
        if marker == 0xD9 or at + 4 > len(data):
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in _FRAMES and not frame:
            frame = at
        if marker == 0xDD:
            (interval,) = struct.unpack_from(">H", data, at + 4)
        header = data[at + 4 : at + 2 + length]
        at += 2 + length
        if marker != 0xDA:
            continue
        if not frame or data[frame + 1] > 0xC2:
            return  # lossless, hierarchical or arithmetic: other markers may stand there, and the checks do not hold
        scans += 1
        if len(header) >= 6 and header[-1] & 15 == 0:
            exact.update((header[1 + 2 * i], k) for i in range(header[0]) for k in range(header[-3], header[-2] + 1))
        while found := _MARKER.search(data, at):
            ends.append(at + len(data[at : found.start()].rstrip(b"\xff")))
            at, number = found.end(), data[found.end() - 1]
            if not 0xD0 <= number <= 0xD7:
                if number not in (0x01, 0xC4, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE) and not 0xE0 <= number <= 0xEF:
                    raise _damaged(f"the marker FF{number:02X} inside its coded data")
                at -= 2
                break
            if not interval or number - 0xD0 != restarts % 8:
                raise _damaged(f"a restart marker FF{number:02X} out of its order")
            restarts += 1
        else:
            raise _damaged("no marker ends it")  # the zeros of an unfinished download decode too
        total, restarts = restarts, 0
    if not scans:
        return  # Pillow refuses it
    if scans == 1 and interval and total != (_mcus(data, frame) - 1) // interval:
        raise _damaged(f"{total} restart markers where {(_mcus(data, frame) - 1) // interval} belong")
    if data[frame + 1] == 0xC2:  # progressive: an eighth shows only the scans of means
        if len(exact) < 64 * data[frame + 9]:
            raise _damaged("scans are missing")
        plain, padded = decoded or QuietJpeg(io.BytesIO(data)), QuietJpeg(io.BytesIO(_padded(data, ends)))
        if ImageChops.difference(plain, padded).getbbox():
            raise _damaged("coded data is missing")
    elif scans == 1:
        _check_one_scan(data, frame, ends)
    elif not np.array_equal(_eighth(data), _eighth(_padded(data, ends))):
        raise _damaged("coded data is missing")


def _check_one_scan(data: bytes, frame: int, ends: list[int]) -> None:
    """Raise BadImage where data is left over or missing in a file with one scan that is not progressive."""
    (height,) = struct.unpack_from(">H", data, frame + 5)
    down, across = _mcu(data, frame)
    rows = -(-height // (8 * down)) * down
    if 8 * (rows + down) <= 0xFFFF:
        data = data[: frame + 5] + struct.pack(">H", 8 * (rows + down)) + data[frame + 7 :]
    plain = _eighth(data)
    row = plain[rows + down // 2 :].astype(int)  # its upper half and its second MCU's edge may show neighbours
    first, others = row[:, :across], row[:, across + 1 :]
    if others.size:
        if np.ptp(others, axis=(0, 1)).max() > 0:
            raise _damaged("coded data is left over")
        if len(ends) == 1 and (first != others[0, 0]).any():
            return  # no data is missing
    if not np.array_equal(plain[:rows], _eighth(_padded(data, ends))[:rows]):
        raise _damaged("coded data is missing")


def _mcu(data: bytes, frame: int) -> tuple[int, int]:
    """Blocks of 8 x 8 pixels in an MCU of a file with one scan: (down, across)."""
    components = data[frame + 9]
    sampling = [data[frame + 11 + 3 * i] for i in range(components)] if components > 1 else [0x11]
    return max(one & 15 for one in sampling), max(one >> 4 for one in sampling)


def _mcus(data: bytes, frame: int) -> int:
    height, width = struct.unpack_from(">HH", data, frame + 5)
    down, across = _mcu(data, frame)
    return int(-(-height // (8 * down)) * -(-width // (8 * across)))


def _padded(data: bytes, ends: list[int]) -> bytes:
    """The file with padding before each marker; less of it where markers are dense: the file grows fivefold at most."""
    starts = [0, *ends]
    padding = PADDING[: 4 * len(data) // max(len(ends), 1)]
    return padding.join([data[start:end] for start, end in zip(starts, [*ends, len(data)], strict=True)])


def _eighth(data: bytes) -> Pixels:
    """Pixels of an eighth of the size, [H W C] in the file's own colours."""
    with QuietJpeg(io.BytesIO(data)) as image:
        image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _damaged(how: str) -> BadImage:
    return BadImage(f"a JPEG whose coded data is damaged ({how}); send the whole file")
