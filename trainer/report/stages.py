"""The page of `synod personalize`: photographs next to images drawn after each stage, losses, and stage 3's regions.

It shows these files of a run's directory, each as soon as it exists:

    photographs.png  decoded.png  class_word.png  stage-N/grid.png      sheets of images
    stage-N/metrics.jsonl                                               losses of questions (mmu) and images (t2i)
    stage-3/regions/drawn-*.png, region-*.png                           finished images, and their regions in white
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from trainer.images import write_whole
from trainer.report.metrics import read
from trainer.report.page import at, chart, template

PHOTOGRAPHS: Final = "photographs.png"
DECODED: Final = "decoded.png"
CLASS_WORD: Final = "class_word.png"
GRID: Final = "grid.png"
SHEET, THUMBNAIL = 544, 228  # largest width on the page in px, twice what is shown
LOSSES: Final = {"loss_text": "answers to questions (mmu)", "loss_image": "masked codes of images (t2i)"}


def write_stages(run_dir: Path, name: str, choices: int) -> Path:
    """Write RUN/report.html and return its path. `choices` is the number of tokens among which t2i's loss decides."""
    path = run_dir / "report.html"
    write_whole(path, template("stages.html.j2").render(view=view(run_dir, name, choices)).encode())
    return path


def view(run_dir: Path, name: str, choices: int) -> dict[str, Any]:
    """Return everything that the page shows, as plain values."""
    stages = sorted(run_dir.glob("stage-*"))
    sheets = {
        "photographs": run_dir / PHOTOGRAPHS,
        "the photographs from their codes": run_dir / DECODED,
        "the class word, before": run_dir / CLASS_WORD,
        **{f"after {path.name.replace('-', ' ')}": path / GRID for path in stages},
    }
    return {
        "name": name,
        "panels": [{"title": title, "data": _shown(path, SHEET)} for title, path in sheets.items() if path.exists()],
        "stages": [_stage(path, choices) for path in stages if read(path)],
        "regions": _regions(run_dir / "stage-3/regions"),
    }


def _stage(directory: Path, choices: int) -> dict[str, Any]:
    records = read(directory)
    charts = [chart(title, records, {"loss": at(key)}) for key, title in LOSSES.items()]
    first, last = (records[i]["epoch"] for i in (0, -1))
    uniform = {"loss_text": "", "loss_image": f"ln({choices}) = {math.log(choices):.3f}"}
    losses = [
        (title, _mean(records, key, first), _mean(records, key, last), uniform[key]) for key, title in LOSSES.items()
    ]
    return {
        "number": directory.name.rpartition("-")[2],
        "losses": [row for row in losses if row[1] is not None],
        "charts": [one for one in charts if one["lines"]],
    }


def _mean(records: Sequence[Mapping[str, Any]], key: str, epoch: int) -> float | None:
    found = [value for record in records if record["epoch"] == epoch and (value := at(key)(record)) is not None]
    return math.fsum(found) / len(found) if found else None


def _regions(directory: Path) -> list[list[dict[str, str]]]:
    found = sorted(directory.glob("region-*.png"))
    pairs = [(path.with_name(path.name.replace("region", "drawn")), path) for path in found]
    return [[{"data": _shown(path, THUMBNAIL)} for path in pair if path.exists()] for pair in pairs]


def _shown(path: Path, width: int) -> str:
    """Return an image as PNG in base64, at most `width` wide."""
    with Image.open(path) as image:
        image.thumbnail((width, 10 * width))
        buffer = io.BytesIO()
        image.save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()
