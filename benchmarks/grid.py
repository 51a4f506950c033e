"""Held-out images before and after training next to each other, with their prompts: what a reader can judge."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from synod.contracts import Pixels
from trainer.evaluate.compare import Row
from trainer.evaluate.heldout import AFTER, BEFORE, image_files, load_evaluation

SIDE: Final = 128  # pixels of a shown image
GAP, LINE, FONT = 8, 15, 12
LINES: Final = 3  # of a caption


def before_after(run_dir: Path, count: int, columns: int = 4, sources: Sequence[Pixels] = ()) -> Image.Image:
    """Return an image of the first `count` held-out prompts of a run: each before and after training, and its prompt.

    They are the first ones, not chosen ones. Both images of a prompt were drawn with the same random numbers. Below a
    prompt is its image part of the reward. Fewer are shown if the evaluations kept fewer images. `sources` are images
    uint8 [H W 3] that were edited, in the order of the prompts, and are shown on the left of each pair.
    """
    sides = [
        list(zip(load_evaluation(run_dir / name).rows, image_files(run_dir / name), strict=False))
        for name in (BEFORE, AFTER)
    ]
    pairs = list(zip(*sides, strict=True))[:count]
    shown = 3 if sources else 2
    width, height = shown * SIDE + 3 * GAP, SIDE + (LINES + 1) * LINE + 2 * GAP
    rows = -(-len(pairs) // columns)
    page = Image.new("RGB", (columns * width, rows * height + LINE + GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT)
    order = "source, before training, after it" if sources else "left: before training, right: after it"
    draw.text((GAP, GAP // 2), order, "black", font)
    for place, ((row, file), (later, other)) in enumerate(pairs):
        x, y = place % columns * width + GAP, place // columns * height + LINE + GAP
        images = [Image.fromarray(sources[place])] if sources else []
        for i, image in enumerate([*images, *map(Image.open, (file, other))]):
            page.paste(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST), (x + i * (SIDE + 4), y))
        for number, text in enumerate(caption(row, later)):
            draw.text((x, y + SIDE + 2 + number * LINE), text, "black" if number < LINES else "dimgray", font)
    return page


def caption(before: Row, after: Row) -> list[str]:
    """Return the prompt in LINES lines, cut where it is too long, and its image part before and after."""
    lines = textwrap.wrap(before.prompt, 2 * SIDE // 6, max_lines=LINES, placeholder=" …")
    lines += [""] * (LINES - len(lines))
    values = ["missing" if row.image_part is None else f"{row.image_part:.3g}" for row in (before, after)]
    return [*lines, " -> ".join(values)]
