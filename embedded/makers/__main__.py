"""`python -m embedded.makers`: train every embedded model that is not finished, two at a time, then measure them.

An interrupted run continues from its checkpoints (build/weights/); a finished model is skipped until its recipe
changes. `--only NAME` makes one model, `--quick` makes toy models for tests, `--no-quality` skips measuring.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The longest first, so that two workers finish at about the same time.
NAMES = ("blip2-world", "detector-world", "dinov2-world", "face-world", "clip-world")
WORKERS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m embedded.makers", description=__doc__)
    parser.add_argument("--only", choices=NAMES, help="train this model only, in this process")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few pictures")
    parser.add_argument("--no-quality", action="store_true", help="do not rewrite embedded/QUALITY.md")
    parser.add_argument("--weights", type=Path, default=ROOT / "embedded/weights", help="where model directories go")
    parser.add_argument("--build", type=Path, default=ROOT / "build/weights", help="where pictures and checkpoints go")
    parser.add_argument("--position", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only:
        make(options.only, options.weights, options.build, quick=options.quick, position=options.position)
        return 0
    began = time.monotonic()
    failed = _all(options)
    if failed:
        print(f"failed: {', '.join(failed)}; run the same command again to continue", file=sys.stderr)
        return 1
    print(f"all models are made; this run took {(time.monotonic() - began) / 60:.1f} minutes")
    if not (options.no_quality or options.quick):
        return subprocess.call([sys.executable, "-m", "embedded.makers.quality"], cwd=ROOT)
    return 0


def make(name: str, weights: Path, build: Path, *, quick: bool = False, position: int = 0) -> Path:
    """Train (or continue, or skip) one model and write its directory, with how it was trained in training.json."""
    import torch

    from embedded.makers import blip2, clip, detector, dinov2, face
    from embedded.makers.base import Maker
    from embedded.makers.dataset import FULL, QUICK, Sizes
    from embedded.makers.loop import Recipe, fit

    classes: dict[str, tuple[Recipe, Callable[[Recipe, Path, Sizes], Maker]]] = {
        "blip2-world": (blip2.RECIPE, blip2.Blip2Maker),
        "dinov2-world": (dinov2.RECIPE, dinov2.Dinov2Maker),
        "detector-world": (detector.RECIPE, detector.DetectorMaker),
        "clip-world": (clip.RECIPE, clip.ClipMaker),
        "face-world": (face.RECIPE, face.FaceMaker),
    }
    recipe, build_maker = classes[name]
    recipe = replace(recipe, steps=3, batch=8) if quick else recipe
    directory = weights / name
    receipt = directory / "training.json"
    if receipt.exists() and (written := json.loads(receipt.read_text()))["recipe"] == asdict(recipe):
        print(f"{name}: finished before, in {written['seconds']:.0f} s")
        return directory
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    maker = build_maker(recipe, build, QUICK if quick else FULL)
    seconds = fit(maker.module, maker.loss, recipe, build / f"{name}.ckpt", name=name, position=position)
    maker.module.eval()
    directory.mkdir(parents=True, exist_ok=True)
    maker.save(directory)
    receipt.write_text(json.dumps({"recipe": asdict(recipe), "seconds": round(seconds)}, indent=2) + "\n")
    for file in directory.iterdir():
        file.chmod(0o644)  # safetensors are written for their owner only
    return directory


def _all(options: argparse.Namespace) -> list[str]:
    """Draw the pictures, then run one process a model on WORKERS threads of work. Returns the names that failed."""
    from embedded.makers import dataset

    sizes = dataset.QUICK if options.quick else dataset.FULL
    for draw in (dataset.scenes, dataset.identities, dataset.faces, dataset.colors):
        draw(options.build, sizes)
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in NAMES:
        waiting.put(name)
    failed: list[str] = []
    workers = [threading.Thread(target=_work, args=(waiting, failed, slot, options)) for slot in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return failed


def _work(waiting: queue.SimpleQueue[str], failed: list[str], slot: int, options: argparse.Namespace) -> None:
    """One model after another, each in its own single-threaded process: two of those beat one with two threads."""
    while True:
        try:
            name = waiting.get_nowait()
        except queue.Empty:
            return
        command = [sys.executable, "-m", "embedded.makers", "--only", name, "--position", str(slot)]
        command += ["--weights", str(options.weights), "--build", str(options.build), *(["--quick"] * options.quick)]
        if subprocess.call(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}):
            failed.append(name)


if __name__ == "__main__":
    sys.exit(main())
