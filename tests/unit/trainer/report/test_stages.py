"""The page of a personalization, from the files of a synthetic run."""

from __future__ import annotations

import base64
import math
import re
from pathlib import Path

import numpy as np
import pytest

from synod.images import ImageLimits, decode, encode_png
from tests.unit.trainer.report.test_page import Balanced
from trainer.images import sheet, write_whole
from trainer.report.metrics import Metrics
from trainer.report.stages import CLASS_WORD, DECODED, GRID, PHOTOGRAPHS, view, write_stages

CODES = 4096
LIMITS = ImageLimits(2**20, 2**24)


def png(side: int, value: int) -> bytes:
    return encode_png(np.full((side, side, 3), value, np.uint8))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was stopped in stage 2, with the regions of a stage 3 of an earlier start."""
    for number, losses in ((1, ("text",)), (2, ("text", "image"))):
        with Metrics(tmp_path / f"stage-{number}") as metrics:
            for step in range(4):
                found = {f"loss_{name}": 10.0 * number + step + (name == "image") for name in losses}
                metrics.log(step, {"epoch": step // 2, **found})
    for path, side, value in (
        (PHOTOGRAPHS, 2000, 10),
        (DECODED, 8, 15),
        (CLASS_WORD, 8, 20),
        (f"stage-1/{GRID}", 8, 30),
        (f"stage-3/{GRID}", 8, 35),  # without an update
        ("stage-3/regions/drawn-000.png", 8, 40),
        ("stage-3/regions/region-000.png", 8, 50),
    ):
        write_whole(tmp_path / path, png(side, value))
    return tmp_path


def test_sheets_are_in_order_and_small(run: Path) -> None:
    found = view(run, "<bo>", CODES)["panels"]
    assert [one["title"] for one in found] == [
        "photographs",
        "the photographs from their codes",
        "the class word, before",
        "after stage 1",
        "after stage 3",
    ]
    pixels = [decode(base64.b64decode(one["data"]), LIMITS) for one in found]
    assert [image[0, 0, 0] for image in pixels] == [10, 15, 20, 30, 35]
    assert [image.shape[0] for image in pixels] == [
        544,
        8,
        8,
        8,
        8,
    ]  # large images would make many megabytes


def test_losses_of_answers_and_images_are_apart(run: Path) -> None:
    first, second = view(run, "<bo>", CODES)["stages"]
    assert first["losses"] == [("answers to questions (mmu)", 10.5, 12.5, "")]
    assert second["losses"][0][1:3] == (20.5, 22.5)
    assert second["losses"][1] == ("masked codes of images (t2i)", 21.5, 23.5, f"ln(4096) = {math.log(4096):.3f}")
    assert [len(stage["charts"]) for stage in (first, second)] == [1, 2]
    assert [chart["low"] for chart in second["charts"]] == [20.0, 21.0]


def test_regions_are_paired_with_their_images(run: Path) -> None:
    ((drawn, region),) = view(run, "<bo>", CODES)["regions"]
    assert [decode(base64.b64decode(one["data"]), LIMITS)[0, 0, 0] for one in (drawn, region)] == [40, 50]


def test_page_is_self_contained_and_balanced(run: Path) -> None:
    page = write_stages(run, "<bo>", CODES).read_text()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "&lt;bo&gt;" in page
    assert "<bo>" not in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert page.count("<img") == 7


def test_a_run_without_files_has_a_page(tmp_path: Path) -> None:
    assert "Photographs" in write_stages(tmp_path, "<bo>", CODES).read_text()


def test_sheet_fills_the_last_row_with_white() -> None:
    images = [np.full((2, 3, 3), value, np.uint8) for value in range(5)]
    found = sheet(images, 4)
    assert found.shape == (4, 12, 3)
    assert [found[0, 3 * i, 0] for i in range(4)] == [0, 1, 2, 3]
    assert [found[2, 3 * i, 0] for i in range(4)] == [4, 255, 255, 255]
