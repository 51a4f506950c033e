"""The page of images of every stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.personalization.page import COLUMNS, LINE, SHOWN, stages_page

SIDE = 8


def finished(run_dir: Path, color: int) -> Path:
    for number, file in enumerate(COLUMNS.values()):
        (run_dir / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4 * SIDE, 4 * SIDE), (color, number, 0)).save(run_dir / file)
    return run_dir


def test_a_finished_run_is_a_row_and_a_file_is_a_column(tmp_path: Path) -> None:
    unfinished = finished(tmp_path / "c", 30)
    (unfinished / "stage-3/grid.png").unlink()
    page = stages_page([finished(tmp_path / "a", 10), unfinished, finished(tmp_path / "b", 20)])
    assert page is not None
    pixels = np.asarray(page)[LINE:]
    colors = {tuple(color) for color in pixels.reshape(-1, 3)} - {(255, 255, 255)}
    assert colors == {(color, number, 0) for color in (10, 20) for number in range(len(COLUMNS))}
    assert (pixels == (20, 1, 0)).all(-1).sum() == SHOWN * SIDE**2
    assert tuple(pixels[0, 0]) == (10, 0, 0)


def test_no_finished_run_has_no_page(tmp_path: Path) -> None:
    assert stages_page([tmp_path]) is None
