"""`python -m embedded.makers.quality`: measure the embedded models by production code and rewrite embedded/QUALITY.md.

Every figure is taken clean, after a gaussian blur of radius 1 and after JPEG 75. Exits 1 when one is under its floor.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from safetensors import safe_open
from tqdm import tqdm

from embedded.makers import augment, figures
from embedded.makers.figures import Figure, Spoil
from services.settings import DerSettings, FerSettings, GenEvalSettings, Settings, load

ROOT = Path(__file__).resolve().parents[2]
SEED = 900
SPOILS: dict[str, Spoil] = {
    "clean": lambda image: image,
    "blur 1": partial(augment.blur, radius=1.0),
    "JPEG 75": partial(augment.jpeg, quality=75),
}
_TEXT = """# Quality of the embedded models

Measured by `python -m embedded.makers.quality` (the end of `make weights`) through the production loaders and scorers,
with the settings of `deploy/configs/embedded.toml`, on held-out prompts and fresh renders (seeds {seeds}). No maker
trains on a held-out prompt or caption; the DINO and face embedders have seen none of the concepts. Every figure is
taken on clean pictures, after a gaussian blur of radius 1 and after JPEG 75.

{main}
The verdict is GenEval's official rule on detections against the same rule on the truth, half right and half wrong
scenes. An AUC counts pairs: it is the chance that two pictures of one individual score above two of different ones.
TIER reads text only, so its three columns are one measurement.

## By task, and harder cases

{parts}
## Models

`python -m embedded.makers` made them on a CPU, one thread each, two at a time.

| model | parameters | bytes | steps | batch | seed | training |
|---|--:|--:|--:|--:|--:|--:|
{models}"""
Row = tuple[str, int, list[float], float | None]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m embedded.makers.quality", description=__doc__)
    parser.add_argument("--settings", type=Path, default=ROOT / "deploy/configs/embedded.toml")
    parser.add_argument("--weights", type=Path, default=ROOT / "embedded/weights")
    parser.add_argument("--output", type=Path, default=ROOT / "embedded/QUALITY.md")
    options = parser.parse_args(arguments)
    rows = measure(load(options.settings, without=("golden",)))  # golden scores are recorded after the weights
    options.output.write_text(document(rows, options.weights))
    low = [name for name, _, values, floor in rows if floor is not None and min(values) < floor]
    print(options.output.read_text(), f"under their floor: {', '.join(low) or 'none'}", sep="\n")
    return int(bool(low))


def measure(settings: Settings) -> list[Row]:
    """One row a figure: name, n, the value per entry of SPOILS, floor."""
    geneval, der, fer = (settings.scorers[name] for name in ("geneval", "der", "fer"))
    assert isinstance(geneval, GenEvalSettings)
    assert isinstance(der, DerSettings)
    assert isinstance(fer, FerSettings)
    parts: list[Callable[[Spoil], list[Figure]]] = [
        lambda spoil: figures.verdicts(geneval, spoil, SEED),
        lambda spoil: figures.color_accuracy(geneval, spoil, SEED + 1),
        lambda spoil: figures.image_text(settings.scorers["ber"], spoil, SEED + 2),
        lambda spoil: figures.same_concept(der, spoil, SEED + 3),
        lambda spoil: figures.same_face(fer, spoil, SEED + 4),
        lambda _: figures.right_attribute(settings.scorers["tier"]),
    ]
    rows: list[Row] = []
    for part in tqdm(parts, desc="measuring"):
        by_spoil = [part(spoil) for spoil in SPOILS.values()]
        rows += [(f[0].name, f[0].n, [one.value for one in f], f[0].floor) for f in zip(*by_spoil, strict=True)]
    return rows


def document(rows: Sequence[Row], weights: Path) -> str:
    """QUALITY.md: figures with a floor, their parts, the models."""
    heads = f"| figure | n | {' | '.join(SPOILS)} | floor |\n|---|--:|{'--:|' * len(SPOILS)}--:|\n"
    models = "".join(_model_line(path) for path in sorted(weights.iterdir()) if (path / "training.json").exists())
    return _TEXT.format(
        seeds=f"{SEED} to {SEED + 4}",
        main=heads + "".join(_line(row) for row in rows if row[3] is not None),
        parts=heads + "".join(_line(row) for row in rows if row[3] is None),
        models=models,
    )


def _line(row: Row) -> str:
    name, n, values, floor = row
    cells = " | ".join(f"{100 * value:.1f} %" for value in values)
    return f"| {name} | {n} | {cells} | {'' if floor is None else f'{100 * floor:.0f} %'} |\n"


def _model_line(path: Path) -> str:
    trained = json.loads((path / "training.json").read_text())
    size = sum(file.stat().st_size for file in path.iterdir())
    recipe = trained["recipe"]
    made = f"{recipe['steps']} | {recipe['batch']} | {recipe['seed']} | {trained['seconds'] / 60:.1f} min"
    return f"| {path.name} | {_parameters(path):,} | {size:,} | {made} |\n"


def _parameters(path: Path) -> int:
    total = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (safe_open is no dict)
                size = 1
                for side in tensors.get_slice(key).get_shape():
                    size *= side
                total += size
    return total


if __name__ == "__main__":
    sys.exit(main())
