"""The shipped weights: complete, small, without pickle; QUALITY.md is at or above every floor."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

from embedded.makers import blip2, clip, clip_scene, codec, detector, dinov2, face, flow, language, magvit, show_o
from embedded.makers.__main__ import FLOW, LANGUAGE, NAMES, ROOT, SANA, SCENES

WEIGHTS, QUALITY = ROOT / "embedded/weights", ROOT / "embedded/QUALITY.md"
RECIPES = {
    f"{module.__name__.rsplit('.')[-1]}-world": [module.RECIPE] for module in (blip2, clip, detector, dinov2, face)
}
RECIPES["magvit-world"] = [magvit.RECIPE, magvit.DECODER_RECIPE]
RECIPES["show-o-world"] = [show_o.RECIPE, show_o.UNCERTAIN_RECIPE]
RECIPES[SANA] = [codec.RECIPE, flow.RECIPE]
RECIPES[LANGUAGE] = [language.SIGHT_RECIPE, language.RECIPE, language.VERDICT_RECIPE]
RECIPES[SCENES] = [clip_scene.RECIPE]
SHIPPED = (*NAMES, *(name for name in FLOW if (WEIGHTS / name).exists()))
LIMIT_BYTES, FLOW_LIMIT_BYTES = 32 * 2**20, 16 * 2**20


def test_every_model_was_trained_by_its_present_recipe() -> None:
    for name in SHIPPED:
        recipes = RECIPES[name]
        written = [part["recipe"] for part in json.loads((WEIGHTS / name / "training.json").read_text())]
        assert written == list(map(asdict, recipes)), name


def test_weights_are_small_and_without_pickle() -> None:
    for names, limit in ((NAMES, LIMIT_BYTES), (FLOW, FLOW_LIMIT_BYTES)):
        files = [file for name in names for file in (WEIGHTS / name).rglob("*") if file.is_file()]
        assert {file.suffix for file in files} <= {".json", ".safetensors", ".jinja"}
        assert sum(file.stat().st_size for file in files) <= limit


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
