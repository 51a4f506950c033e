"""The shipped weights: complete, small, without pickle; their measured quality is at or above every floor."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

from embedded.makers import blip2, clip, clip_scene, codec, detector, dinov2, face, flow, language, magvit, show_o
from embedded.makers.__main__ import FLOW, LANGUAGE, NAMES, ROOT, SANA, SCENES

WEIGHTS = ROOT / "embedded/weights"
QUALITY, FLOW_QUALITY = (ROOT / f"embedded/{name}.md" for name in ("QUALITY", "QUALITY_FLOW"))
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


def floors(text: str, columns: int) -> dict[str, tuple[list[float], float]]:
    """Return the metrics with a floor and so many values: name -> (values; floor), in per cent.

    QUALITY.md has clean, blur, JPEG and tokens; QUALITY_FLOW.md has clean and codec, or one value with its error.
    """
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        numbers = [re.fullmatch(r"([\d.]+)( ± [\d.]+)? %", cell) for cell in cells[2:]]
        matched = [match for match in numbers if match]
        if len(matched) == len(numbers) == columns + 1 and matched[-1].group(2) is None:
            *values, floor = (float(match.group(1)) for match in matched)
            found[cells[0]] = (values, floor)
    return found


def lost(figures: dict[str, tuple[list[float], float]]) -> dict[str, float]:
    """Return the points that each scorer loses between the first value and the last; the judge loses more."""
    return {name: values[0] - values[-1] for name, (values, _) in figures.items() if "judge" not in name}


def test_quality_is_at_or_above_every_floor() -> None:
    figures = floors(QUALITY.read_text(), 4)
    wanted = ("detector", "colour", "true above wrong", "one word", "DINO", "face: same", "TIER")
    assert all(any(part in name for name in figures) for part in wanted)
    for name, (values, floor) in figures.items():
        assert floor >= 80
        assert min(values[:3]) >= floor, name


def test_image_tokenizer_costs_at_most_five_points() -> None:
    figures = floors(QUALITY.read_text(), 4)
    assert max(lost(figures).values()) <= 5, lost(figures)


def test_codec_of_the_flow_costs_at_most_five_points() -> None:
    figures = floors(FLOW_QUALITY.read_text(), 2)
    assert set(figures) == set(floors(QUALITY.read_text(), 4))
    assert max(lost(figures).values()) <= 5, lost(figures)
    for name, (values, floor) in figures.items():
        assert floor >= 80
        assert min(values) >= floor, name


def test_clip_of_scenes_is_at_or_above_its_floors() -> None:
    figures = floors(FLOW_QUALITY.read_text(), 1)
    assert len(figures) == 3
    for name, ((value,), floor) in figures.items():
        assert name.startswith("scenes: ")
        assert value >= floor >= 80, name
