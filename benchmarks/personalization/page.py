"""What a reader can judge: photographs of each concept next to what the policy draws of it, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from trainer.images import SHEET_COLUMNS
from trainer.report.stages import CLASS_WORD, GRID, PHOTOGRAPHS

COLUMNS: Final[Mapping[str, str]] = {
    "photographs": PHOTOGRAPHS,
    "drawn from the class word": CLASS_WORD,
    "after stage 1": f"stage-1/{GRID}",
    "after stage 2": f"stage-2/{GRID}",
    "after stage 3": f"stage-3/{GRID}",
}
SHOWN: Final = 3  # images in a cell, the first of each sheet
GAP, LINE = 8, 18


def stages_page(run_dirs: Sequence[Path]) -> Image.Image | None:
    """Return a row for each finished run of `synod personalize`, all of one policy; None if none is finished.

    The images drawn of one concept begin with the same random numbers in all columns.
    """
    rows = [one for one in run_dirs if all((one / file).exists() for file in COLUMNS.values())]
    if not rows:
        return None
    with Image.open(rows[0] / PHOTOGRAPHS) as sheet:
        side = sheet.width // SHEET_COLUMNS
    width, height = SHOWN * side + GAP, side + GAP
    page = Image.new("RGB", (len(COLUMNS) * width, LINE + len(rows) * height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for x, (title, file) in enumerate(COLUMNS.items()):
        draw.text((x * width, 2), title, "black", font)
        for y, run_dir in enumerate(rows):
            with Image.open(run_dir / file) as sheet:
                page.paste(sheet.crop((0, 0, SHOWN * side, side)), (x * width, LINE + y * height))
    return page
