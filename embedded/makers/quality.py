"""`python -m embedded.makers.quality`: measure the embedded models and rewrite embedded/QUALITY.md.

The production loaders and scorers run on clean images, after a Gaussian blur of radius 1, after JPEG 75, and after the
policy's image tokenizer. Exits 1 when a metric is below its floor or the tokenizer costs one over MAX_TOKENIZER_LOSS.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from safetensors import safe_open
from tqdm import tqdm

from embedded.makers import augment, metrics, policy_start
from embedded.makers.__main__ import NAMES
from embedded.makers.metrics import Degradation, Metric
from services.scorers.der import DerSettings
from services.scorers.fer import FerSettings
from services.scorers.geneval import GenEvalSettings
from services.settings import Settings, load
from trainer.policy.show_o.magvit import Magvit
from trainer.settings import ShowOSettings, TrainerSettings
from trainer.settings import load as load_trainer

ROOT = Path(__file__).resolve().parents[2]
SEED = 900
DEGRADATIONS: dict[str, Degradation] = {
    "clean": lambda image: image,
    "blur 1": partial(augment.blur, radius=1.0),
    "JPEG 75": partial(augment.jpeg, quality=75),
}
TOKENS = "tokens"  # column of images encoded and decoded by the policy's image tokenizer
MAX_TOKENIZER_LOSS = 0.05
_TEXT = """# Quality of the embedded models

Measured by `python -m embedded.makers.quality` (the end of `make weights`) through the production loaders and scorers,
with the settings of `deploy/configs/embedded.toml`, on held-out prompts and fresh renders (seeds {seeds}). No maker
trains on a held-out prompt or caption; the DINO and face embedders have seen none of the concepts. Every metric is
measured on clean images, after a Gaussian blur of radius 1, after JPEG 75, and on images that the policy's image
tokenizer encoded and decoded (tokens), which may cost a scorer's metric at most {most:.0f} points of its clean value.
The judge loses more: the tokenizer blurs accessories and places, which its claims are about.

{main}
The verdict compares GenEval's official rule on detections with the same rule on the ground truth; half of the scenes
are correct. An AUC is the probability that two images of one individual score above two of different individuals.
TIER reads text only, so its columns are one measurement.

## By task, and harder cases

{parts}
## The policy before reinforcement learning

{start}
Held-out prompts, one image or answer each, with the sampler of `deploy/configs/embedded.toml` (± standard error).
`overall` is the mean of GenEval's official verdict over its tasks, of which `single_object` is one. The accessory's
colour is the one that the prompt states, by the median colour of the detector's accessory pixels; a missing one is
wrong. `yes or no`: whether a seen concept is shown, half of the images are of others. `visual, unseen`: exact answers
about individuals of no training. `image's answer`: where a question names a concept and shows another individual. A
right attribute is the fact that a vague prompt refers to, named verbatim. The rank correlation is Spearman's,
over {rollouts} rollouts of a prompt and averaged over prompts, of BER on the preview with BER on the finished image.

## Models

`python -m embedded.makers` trained them on two cores: one thread each, two at a time; the image tokenizer (in two
parts, the second with a perceptual loss on the detector's features) and then the policy with two threads.
Training minutes are CPU minutes per thread. {elapsed}

{models}"""
Row = tuple[str, int, list[float], float | None]  # the last value is that of TOKENS


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m embedded.makers.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--settings", type=Path, default=ROOT / "deploy/configs/embedded.toml", help="settings TOML (%(default)s)"
    )
    parser.add_argument("--weights", type=Path, default=ROOT / "embedded/weights", help="the models (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "embedded/QUALITY.md", help="the document to write (%(default)s)"
    )
    parser.add_argument("--minutes", type=float, help="what rendering and training everything took")
    options = parser.parse_args(arguments)
    # Golden scores are recorded after the weights.
    service, trainer = load(options.settings, without=("golden",)), load_trainer(options.settings)
    rows = measure(service, {**DEGRADATIONS, TOKENS: tokenizer(trainer)})
    start = policy_start.measure(service, trainer, SEED + 5)
    options.output.write_text(document(rows, start, options.weights, options.minutes))
    low = [name for name, _, values, floor in rows if floor is not None and min(values[:-1]) < floor]
    lost = [name for name, _, v, floor in rows if floor is not None and v[0] - v[-1] > MAX_TOKENIZER_LOSS]
    print(options.output.read_text(), f"below their floor: {', '.join(low) or 'none'}", sep="\n")
    print(f"degraded by the image tokenizer: {', '.join(lost) or 'none'}")
    return int(bool(low or lost))


def tokenizer(settings: TrainerSettings) -> Degradation:
    """Return the degradation by the policy's image tokenizer: encode and decode."""
    assert isinstance(settings.policy, ShowOSettings)
    assert settings.policy.vq is not None
    vq = Magvit.load(Path(settings.policy.vq))
    return lambda image: vq.decode(vq.encode([image]))[0]


def measure(settings: Settings, degradations: Mapping[str, Degradation]) -> list[Row]:
    """Return a row per metric: name, n, its value after each of the degradations, floor."""
    geneval, der, fer = (settings.scorers[name] for name in ("geneval", "der", "fer"))
    assert isinstance(geneval, GenEvalSettings)
    assert isinstance(der, DerSettings)
    assert isinstance(fer, FerSettings)
    parts: list[Callable[[Degradation], list[Metric]]] = [
        lambda degrade: metrics.verdicts(geneval, degrade, SEED),
        lambda degrade: metrics.color_accuracy(geneval, degrade, SEED + 1),
        lambda degrade: metrics.image_text(settings.scorers["ber"], degrade, SEED + 2),
        lambda degrade: metrics.same_concept(der, degrade, SEED + 3),
        lambda degrade: metrics.same_face(fer, degrade, SEED + 4),
        lambda _: metrics.right_attribute(settings.scorers["tier"]),
        lambda degrade: metrics.judge_agreement(500, degrade, SEED + 6),
    ]
    rows: list[Row] = []
    for part in tqdm(parts, desc="measuring"):
        by_degradation = [part(degrade) for degrade in degradations.values()]
        rows += [(f[0].name, f[0].n, [one.value for one in f], f[0].floor) for f in zip(*by_degradation, strict=True)]
    return rows


def document(rows: Sequence[Row], policy: Sequence[Metric], weights: Path, minutes: float | None = None) -> str:
    """Return the text of QUALITY.md; `minutes` is the duration of `make weights`, if it ran from start to end."""
    initial = "".join(f"| {one.name} | {one.n} | {format_value(one)} |\n" for one in policy)
    return _TEXT.format(
        seeds=f"{SEED} to {SEED + 5}",
        most=100 * MAX_TOKENIZER_LOSS,
        start=f"| metric | n | value |\n|---|--:|--:|\n{initial}",
        rollouts=policy_start.ROLLOUTS,
        main=scores_table((row for row in rows if row[3] is not None), [*DEGRADATIONS, TOKENS]),
        parts=scores_table((row for row in rows if row[3] is None), [*DEGRADATIONS, TOKENS]),
        models=models_table(weights / name for name in sorted(NAMES)),
        elapsed="" if minutes is None else f"Rendering and training everything took {minutes:.1f} minutes.",
    )


def scores_table(rows: Iterable[Row], columns: Sequence[str]) -> str:
    """Return a Markdown table of metrics after each degradation."""
    heads = f"| metric | n | {' | '.join(columns)} | floor |\n|---|--:|{'--:|' * len(columns)}--:|\n"
    return heads + "".join(map(_line, rows))


def models_table(directories: Iterable[Path]) -> str:
    """Return a Markdown table of models, from what `makers` wrote of their training."""
    heads = "| model | parameters | bytes | steps | batch | seed | training |\n|---|--:|--:|--:|--:|--:|--:|\n"
    return heads + "".join(map(_model_line, directories))


def format_value(metric: Metric) -> str:
    if metric.error is not None:
        return f"{metric.value:.2f} ± {metric.error:.2f}"
    error = math.sqrt(metric.value * (1 - metric.value) / max(metric.n, 1))
    return f"{100 * metric.value:.1f} ± {100 * error:.1f} %"


def _line(row: Row) -> str:
    name, n, values, floor = row
    cells = " | ".join(f"{100 * value:.1f} %" for value in values)
    return f"| {name} | {n} | {cells} | {'' if floor is None else f'{100 * floor:.0f} %'} |\n"


def _model_line(path: Path) -> str:
    parts = json.loads((path / "training.json").read_text())
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    steps, batch, seed = (" + ".join(str(part["recipe"][key]) for part in parts) for key in ("steps", "batch", "seed"))
    minutes = " + ".join(f"{part['seconds'] / 60:.1f}" for part in parts)
    return f"| {path.name} | {_parameters(path):,} | {size:,} | {steps} | {batch} | {seed} | {minutes} min |\n"


def _parameters(path: Path) -> int:
    total = 0
    for file in path.rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            # safe_open is not a dict
            total += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    return total


if __name__ == "__main__":
    sys.exit(main())
