"""Grids of captioned images in one PNG, which a person can look at and a program can take apart again.

A grid is rows of (title, [(caption, image uint8 [H W 3]), ...]). Small images are drawn larger, by whole factors.
The PNG carries titles, captions and places of the images as a text chunk, so `load_grid` gives back what was saved.
"""

from __future__ import annotations

import io
import json
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from synod.contracts import Pixels
from synod.errors import SettingsError

Row = tuple[str, Sequence[tuple[str, Pixels]]]
_CHUNK: Final = "synod-grid"
_LEAST: Final = 128  # pixels of the screen that the longest side of all images should take
_GAP, _FONT, _LINE = 8, 11, 14
_LETTER: Final = 6.0  # pixels a letter takes, about


def save_grid(path: Path, rows: Sequence[Row]) -> Pixels:
    """Write the grid, whole or not at all, and return it as drawn, uint8 [H W 3]. Raises ValueError when empty."""
    sizes = [image.shape[:2] for _, cells in rows for _, image in cells]
    if not sizes:
        raise ValueError(f"{path}: a grid without images; give at least one")
    scale = max(1, _LEAST // max(max(size) for size in sizes))
    tile = max(_LEAST, scale * max(width for _, width in sizes))
    wide = _GAP + max(len(cells) for _, cells in rows) * (tile + _GAP)
    strips, layout = [], []
    top = 0
    for title, cells in rows:
        strip, placed = _strip(title, cells, wide, tile, scale)
        layout.append({"title": title, "images": [{**cell, "top": cell["top"] + top} for cell in placed]})
        strips.append(strip)
        top += len(strip)
    canvas = np.concatenate(strips)
    info, held = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_itxt(_CHUNK, json.dumps({"scale": scale, "rows": layout}))
    Image.fromarray(canvas).save(held, "png", pnginfo=info)
    write_whole(path, held.getvalue())
    return canvas


def load_grid(path: Path) -> list[Row]:
    """The rows that `save_grid` wrote. Raises SettingsError for a file that it did not write."""
    try:
        with Image.open(path) as opened:
            layout, canvas = json.loads(opened.info[_CHUNK]), np.asarray(opened.convert("RGB"))
        rows = [(row["title"], row["images"]) for row in layout["rows"]]
        return [(title, [_cut(canvas, layout["scale"], **cell) for cell in cells]) for title, cells in rows]
    except (KeyError, OSError, SyntaxError, TypeError, ValueError) as error:
        raise SettingsError(f"{path} is not a grid of images of this program ({error!r}); remove it") from None


def write_whole(path: Path, data: bytes) -> None:
    """Write the file under another name and rename it, so that whoever reads it sees all of it or the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _strip(
    title: str, cells: Sequence[tuple[str, Pixels]], wide: int, tile: int, scale: int
) -> tuple[Pixels, list[dict[str, Any]]]:
    """One row as drawn, and where its images are."""
    heading, captions = _wrapped(title, wide - 2 * _GAP), [_wrapped(caption, tile) for caption, _ in cells]
    top = _GAP + _LINE * len(heading)
    below = top + scale * max((image.shape[0] for _, image in cells), default=0) + 2
    canvas = Image.new("RGB", (wide, below + _LINE * max(map(len, captions), default=0) + _GAP), "white")
    _write(canvas, (_GAP, _GAP), heading, "black")
    placed: list[dict[str, Any]] = []
    for column, ((caption, image), lines) in enumerate(zip(cells, captions, strict=True)):
        left, (height, width) = _GAP + column * (tile + _GAP), image.shape[:2]
        large = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        canvas.paste(large, (left, top))
        _write(canvas, (left, below), lines, "#5b6675")
        placed.append({"caption": caption, "top": top, "left": left, "height": height, "width": width})
    return np.array(canvas), placed


def _cut(
    canvas: Pixels, scale: int, *, caption: str, top: int, left: int, height: int, width: int
) -> tuple[str, Pixels]:
    found = canvas[top : top + height * scale : scale, left : left + width * scale : scale]
    if found.shape != (height, width, 3):
        raise ValueError(f"an image of {height} x {width} at {top}, {left} lies outside the grid")
    return caption, np.ascontiguousarray(found)


def _wrapped(text: str, wide: int) -> list[str]:
    return [line for part in text.splitlines() for line in textwrap.wrap(part, max(8, int(wide / _LETTER)))]


def _write(canvas: Image.Image, at: tuple[int, int], lines: Sequence[str], fill: str) -> None:
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT)
    for number, line in enumerate(lines):
        pen.text((at[0], at[1] + number * _LINE), line, fill=fill, font=font)
