"""Self-supervised training (GvU) of the small policy, from a normal and from a weak start.

    make up && python -m benchmarks.gvu --steps 150 --start normal
    make up && python -m benchmarks.gvu --steps 150 --start weak
    make up && python -m benchmarks.gvu --steps 150 --start normal --permuted      # the control

Both starts are first taught to describe images (`embedded.makers`, 1,500 steps), without which the reward is noise:
the normal one is the embedded policy, the weak one the first 600 steps of its maker. Then each trains on its intrinsic
reward, by deploy/configs/gvu_embedded.toml, with the frozen start as its teacher. The same held-out prompts are drawn
before and after with the same random numbers, and compared pair by pair: the intrinsic reward, and GenEval's score and
verdict, which were not trained on. The control trains on rewards that are permuted within each group, so it must not
move. OUT has one entry for each start and each control. The same command skips what is finished and continues what was
started; Ctrl-C and SIGTERM stop it.

Time on two idle cores: training 17 minutes (150 steps) and each evaluation 2.5 (1,000 images), measured; rendering for
the makers 5, once, the weak start 7 and captions 15 for each start, estimated. If the reward does not rise, look at the
noise of its gradient first: `python -m benchmarks.gradient_snr deploy/configs/gvu_embedded.toml` with
SYNOD__TRAINER__POLICY__MODEL=RUNS/starts/normal-captions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.arguments import count, exit_with
from benchmarks.arms import WHOLE, Permuted
from benchmarks.dgs import open_service
from benchmarks.grid import before_after
from benchmarks.learning import WINDOW, above, changes_of, within
from benchmarks.machine import command, commit, machine
from benchmarks.measures import Change, line, to_document
from benchmarks.resumable import finish
from benchmarks.timed import FACTS, train_timed, trained_s
from embedded.makers import show_o
from embedded.makers.__main__ import train_part
from embedded.makers.loop import Recipe
from embedded.makers.show_o import BatchMix, ShowOMaker
from trainer.clock import Clock
from trainer.evaluate.compare import summary
from trainer.images import write_whole
from trainer.report.metrics import read
from trainer.rewards.intrinsic import with_intrinsic
from trainer.run import make_policy
from trainer.settings import TrainerSettings, load

ROOT: Final = Path(__file__).resolve().parents[1]
STARTS: Final = ("normal", "weak")
CONTROLLED: Final = ("reward", "geneval soft", "geneval official")  # what must not move in a control
WEAK: Final = replace(show_o.RECIPE, steps=600, decay=200)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare the start, train it, compare, and write the result; exit status 0: it is finished."""
    options = _parser().parse_args(arguments)

    def work() -> bool:
        start = prepare(options.start, options.runs / "starts", options.build, quick=options.quick)
        settings = settings_of(options, start)
        if not train(settings, options.runs / "before", permuted=options.permuted):
            return False
        _write(options, settings)
        return True

    return finish(options.runs, work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gvu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=count, default=150, help="of training on the intrinsic reward (150)")
    parser.add_argument("--start", choices=STARTS, default=STARTS[0], help="the policy to start from (normal)")
    parser.add_argument("--permuted", action="store_true", help="permute the rewards within each group: the control")
    parser.add_argument("--prompts", type=count, default=1000, help="held-out prompts, before and after (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the run and of the held-out images (0)")
    parser.add_argument("--shown", type=count, default=16, help="prompts in the PNG, at most 24 (16)")
    parser.add_argument("--url", help="the service (default: the settings')")
    parser.add_argument(
        "--config", type=Path, default=ROOT / "deploy/configs/gvu_embedded.toml", help="settings TOML (%(default)s)"
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/gvu", help="where starts and runs go")
    parser.add_argument("--build", type=Path, default=ROOT / "build/weights", help="training images of the makers")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/gvu.json", help="the result (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="starts of a few steps on a few images, for tests")
    return parser


def prepare(start: str, folder: Path, build: Path, *, quick: bool = False) -> Path:
    """Return the directory of a start that describes images, which is trained unless it is there."""
    source = ROOT / "embedded/weights/show-o-world"
    if start == "weak":
        source = _made(folder / "weak", WEAK, build, show_o.LEARNING_MIX, None, quick=quick)
    captions = show_o.CAPTION_RECIPE
    return _made(folder / f"{start}-captions", captions, build, show_o.CAPTION_MIX, source, quick=quick)


def _made(directory: Path, recipe: Recipe, build: Path, mix: BatchMix, start: Path | None, *, quick: bool) -> Path:
    """Train a policy by its maker and write it; a checkpoint continues an interrupted training."""
    if (directory / "config.json").exists():
        return directory
    step = recipe, partial(ShowOMaker, vq=ROOT / "embedded/weights/magvit-world", mix=mix, start=start)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of each of the workers
    try:
        maker, _ = train_part(step, build, directory.with_suffix(".ckpt"), quick=quick, workers=show_o.WORKERS)
    finally:
        torch.set_num_threads(threads)
    partial_directory = directory.with_name(f"{directory.name}.partial")
    maker.save(partial_directory)
    partial_directory.rename(directory)
    return directory


def name_of(options: argparse.Namespace) -> str:
    """Return the name of a run: that of its start, and whether it is the control."""
    return f"{options.start}_permuted" if options.permuted else str(options.start)


def settings_of(options: argparse.Namespace, start: Path) -> TrainerSettings:
    """Return the settings of a start's run. Raises SettingsError."""
    changed = {
        "STEPS": str(options.steps),
        "SEED": str(options.seed),
        "RUN_DIR": str((options.runs / name_of(options)).resolve()),
        "POLICY__MODEL": str(start.resolve()),
        "EVALUATE__PROMPTS": str(options.prompts),
        **({"REWARDS__URL": options.url} if options.url else {}),
        **({"REWARD_BATCH_SIZE": str(WHOLE)} if options.permuted else {}),
    }
    return load(options.config, {**os.environ, **{f"SYNOD__TRAINER__{key}": value for key, value in changed.items()}})


def train(settings: TrainerSettings, starts: Path, *, permuted: bool) -> bool:
    """Train and evaluate by the running service; return whether the run is complete.

    Runs with one start share its evaluation in `starts`.
    """
    policy = make_policy(settings)
    with closing(open_service(settings)) as asked:
        service = with_intrinsic(asked, policy, settings, Clock())
        trained_on = Permuted(service, settings.seed) if permuted else None
        return train_timed(settings, policy, service, [math.inf], trained_on=trained_on, starts=starts)


def _write(options: argparse.Namespace, settings: TrainerSettings) -> None:
    name = name_of(options)
    run_dir, image = settings.run_dir, options.out.with_name(f"{options.out.stem}_{name}.png")
    found = changes_of(run_dir)
    whole = json.loads(options.out.read_text()) if options.out.exists() else {}
    whole[name] = {
        "command": command(),
        "commit": commit(),
        "machine": machine(),
        "image": image.name,
        "settings": json.loads((run_dir / FACTS).read_text()),
        "verdicts": verdicts(found, permuted=options.permuted),
        **training(run_dir),
        "heldout": to_document(found),
    }
    gains = {start: whole[start]["heldout"].get("geneval official") for start in STARTS if start in whole}
    whole["gain in geneval official"] = {start: one and one["difference"] for start, one in gains.items()}
    write_whole(options.out, (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode())
    before_after(run_dir, options.shown).save(image, optimize=True)
    print(name, *(f"  {line(measure, change)}" for measure, change in found.items()), sep="\n")
    print(json.dumps(whole[name]["verdicts"], indent=1))


def verdicts(found: Mapping[str, Change], *, permuted: bool = False) -> dict[str, bool | None]:
    """Return what a run, or a control, shows; None where it was not measured."""
    if permuted:
        return {f"{name} within 2 errors of 0": within(found.get(name), 2) for name in CONTROLLED}
    return {
        "intrinsic reward up by 2 errors": above(found.get("reward"), 2),
        "geneval official not down by 2 errors": above(found.get("geneval official"), -2),
    }


def training(run_dir: Path) -> dict[str, Any]:
    """Return what a run's records say about its training."""
    records = read(run_dir)
    mean = partial(_mean_of, records)
    return {
        "steps": len(records),
        "minutes": round(math.fsum(map(trained_s, records)) / 60, 2),
        **{f"{name}_first_{WINDOW}_steps": mean(name, slice(0, WINDOW)) for name in ("intrinsic", "geneval")},
        **{f"{name}_last_{WINDOW}_steps": mean(name, slice(-WINDOW, None)) for name in ("intrinsic", "geneval")},
        **{name: sum(record[name] for record in records) for name in ("masked", "skipped", "flat")},
    }


def _mean_of(records: Sequence[Mapping[str, Any]], name: str, part: slice) -> float | None:
    return summary(record["components"].get(name) for record in records[part]).mean


if __name__ == "__main__":
    exit_with(main)
