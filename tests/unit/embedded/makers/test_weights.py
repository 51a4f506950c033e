"""The shipped weights: complete, small, without pickle; QUALITY.md is at or above every floor."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

from embedded.makers import blip2, clip, detector, dinov2, face, magvit, show_o
from embedded.makers.__main__ import NAMES, ROOT

WEIGHTS, QUALITY = ROOT / "embedded/weights", ROOT / "embedded/QUALITY.md"
MAKERS = {module.__name__.rsplit(".")[-1]: module for module in (blip2, clip, detector, dinov2, face, magvit)}
MAKERS["show-o"] = show_o
SECOND_PARTS = {magvit: [magvit.DECODER_RECIPE], show_o: [show_o.UNCERTAIN_RECIPE]}
LIMIT_BYTES = 32 * 2**20


def test_every_model_was_trained_by_its_present_recipe() -> None:
    for name in NAMES:
        maker = MAKERS[name.removesuffix("-world")]
        recipes = [maker.RECIPE, *SECOND_PARTS.get(maker, ())]
        written = [part["recipe"] for part in json.loads((WEIGHTS / name / "training.json").read_text())]
        assert written == list(map(asdict, recipes)), name


def test_weights_are_small_and_without_pickle() -> None:
    files = [file for name in NAMES for file in (WEIGHTS / name).rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".json", ".safetensors"}
    assert sum(file.stat().st_size for file in files) <= LIMIT_BYTES


def floors(text: str) -> dict[str, tuple[list[float], float]]:
    """Return the metrics with a floor: name -> (clean, blur, JPEG, tokens; floor), in per cent."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        numbers = [re.fullmatch(r"([\d.]+) %", cell) for cell in cells[2:]]
        if len(numbers) == 5 and all(numbers):
            *values, floor = (float(match.group(1)) for match in numbers if match)
            found[cells[0]] = (values, floor)
    return found


def test_quality_is_at_or_above_every_floor() -> None:
    figures = floors(QUALITY.read_text())
    wanted = ("detector", "colour", "true above wrong", "one word", "DINO", "face: same", "TIER")
    assert all(any(part in name for name in figures) for part in wanted)
    for name, (values, floor) in figures.items():
        assert floor >= 80
        assert min(values[:3]) >= floor, name


def test_image_tokenizer_costs_at_most_five_points() -> None:
    scorers = {name: values for name, (values, _) in floors(QUALITY.read_text()).items() if "judge" not in name}
    lost = {name: values[0] - values[3] for name, values in scorers.items()}
    assert max(lost.values()) <= 5, lost
