"""`python -m embedded.makers`: train the unfinished embedded models, two at a time; measure all.

`--parts` chooses: "base" are the scorers, the image tokenizer and the policy, "flow" the models of the flow policy.

The image tokenizer and then the policy are trained last, alone, with both threads: the tokenizer's second part needs
the detector, and the policy needs the tokenizer. So are the flow models, whose codec needs the detector, too.

An interrupted run resumes from its checkpoints in build/weights/. A model with a complete checkpoint is only written
again, until its recipe changes; remove that folder after a change of the world. `--only NAME` trains one model,
`--quick` trains toy models for tests, `--no-quality` skips the measurement. `--only show-o-captions` trains a policy
that also describes images, from the present one, and writes build/weights/show-o-captions (15 minutes on two cores);
`--only sana-editor` a flow policy that reads a source image, build/weights/sana-editor (17 minutes on one core).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from embedded.makers.base import Maker
    from embedded.makers.dataset import Sizes
    from embedded.makers.loop import Recipe

ROOT = Path(__file__).resolve().parents[2]
# Longest training first, so that two workers finish at about the same time.
SCORERS = ("blip2-world", "detector-world", "dinov2-world", "face-world", "clip-world")
TOKENIZER, POLICY = "magvit-world", "show-o-world"
SANA, SCENES, LANGUAGE = "sana-world", "clip-scene-world", "language-world"
# Not embedded: what the policy becomes that also describes images, and the flow policy that reads a source image.
CAPTIONS, EDITOR = "show-o-captions", "sana-editor"
NAMES = (*SCORERS, TOKENIZER, POLICY)
FLOW = (SANA, LANGUAGE, SCENES)
PARTS = {"base": NAMES, "flow": FLOW, "all": (*NAMES, *FLOW)}
WORKERS = 2
THREADED = (TOKENIZER, POLICY, CAPTIONS, SANA)  # trained alone, with WORKERS threads
Step: TypeAlias = "tuple[Recipe, Callable[[Recipe, Path, Sizes], Maker]]"  # a part of a training


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m embedded.makers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", choices=PARTS, default="all", help="which models to train (all)")
    parser.add_argument("--only", choices=(*PARTS["all"], CAPTIONS, EDITOR), help="train this model, in this process")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few images")
    parser.add_argument("--no-quality", action="store_true", help="do not measure and rewrite embedded/QUALITY*.md")
    parser.add_argument(
        "--weights", type=Path, default=ROOT / "embedded/weights", help="directory of the model directories"
    )
    parser.add_argument(
        "--build", type=Path, default=ROOT / "build/weights", help="directory of training images and checkpoints"
    )
    parser.add_argument("--position", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only:
        make(options.only, options.weights, options.build, quick=options.quick, position=options.position)
        return 0
    began = time.monotonic()
    total_s = 0.0
    try:
        failed = _train_everything(options)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    finally:
        total_s = _add_elapsed(options.build / "elapsed.json", time.monotonic() - began)
    if failed:
        print(f"failed: {', '.join(failed)}; run the same command again to continue", file=sys.stderr)
        return 1
    print(f"all models are trained; rendering and training took {total_s / 60:.1f} minutes, earlier runs included")
    measures = {"base": ["quality", "--minutes", f"{total_s / 60:.1f}"], "flow": ["flow_quality"]}
    if options.no_quality or options.quick:
        return 0
    return max(
        subprocess.call([sys.executable, "-m", f"embedded.makers.{module}", *arguments], cwd=ROOT)
        for part, (module, *arguments) in measures.items()
        if options.parts in (part, "all")
    )


def _add_elapsed(path: Path, seconds: float) -> float:
    """Add the duration of a run, also of an interrupted one, to those of the earlier ones; return the sum."""
    total = (json.loads(path.read_text()) if path.exists() else 0.0) + seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(round(total, 1)))
    return float(total)


def make(name: str, weights: Path, build: Path, *, quick: bool = False, position: int = 0) -> Path:
    """Train one model, from its checkpoints if there are any, and write its directory.

    training.json records the recipe and seconds of each part.
    """
    import torch

    from embedded.makers import blip2, clip, detector, dinov2, face, magvit, show_o

    directory, tokenizer = (build if name in (CAPTIONS, EDITOR) else weights) / name, weights / TOKENIZER
    decoder = partial(magvit.DecoderMaker, tokenizer=tokenizer, detector=weights / "detector-world")
    start = partial(show_o.ShowOMaker, vq=tokenizer)
    parts: dict[str, list[Step]] = {
        "blip2-world": [(blip2.RECIPE, blip2.Blip2Maker)],
        "dinov2-world": [(dinov2.RECIPE, dinov2.Dinov2Maker)],
        "detector-world": [(detector.RECIPE, detector.DetectorMaker)],
        "clip-world": [(clip.RECIPE, clip.ClipMaker)],
        "face-world": [(face.RECIPE, face.FaceMaker)],
        TOKENIZER: [(magvit.RECIPE, magvit.MagvitMaker), (magvit.DECODER_RECIPE, decoder)],
        POLICY: [
            (show_o.RECIPE, start),
            (show_o.UNCERTAIN_RECIPE, partial(start, mix=show_o.UNCERTAIN_MIX, start=directory)),
        ],
        CAPTIONS: [(show_o.CAPTION_RECIPE, partial(start, mix=show_o.CAPTION_MIX, start=weights / POLICY))],
    }
    if name in (*FLOW, EDITOR):
        parts |= _flow_parts(weights)
    records = []
    torch.set_num_threads(1 if quick else _threads(name))
    directory.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(parts[name], 1):
        part = name if number == 1 else f"{name}-{number}"
        checkpoint, workers = build / f"{part}.ckpt", WORKERS if name in THREADED else 1
        maker, record = train_part(step, build, checkpoint, quick=quick, position=position, workers=workers)
        maker.save(directory)
        records.append(record)
    (directory / "training.json").write_text(json.dumps(records, indent=2) + "\n")
    for file in filter(Path.is_file, directory.rglob("*")):
        file.chmod(0o644)  # safetensors files are readable only by their owner
    return directory


def train_part(
    step: Step, build: Path, checkpoint: Path, *, quick: bool = False, position: int = 0, workers: int = 1
) -> tuple[Maker, dict[str, Any]]:
    """Train one part, from its checkpoint if there is one; return its maker, and its recipe and seconds as a record."""
    import torch

    from embedded.makers.dataset import FULL, QUICK
    from embedded.makers.loop import fit

    full, build_maker = step
    recipe = replace(full, steps=3, batch=8) if quick else full
    torch.manual_seed(recipe.seed)
    maker = build_maker(recipe, build, QUICK if quick else FULL)
    name = checkpoint.stem
    with getattr(maker, "context", nullcontext)():
        seconds = fit(maker.module, maker.loss, recipe, checkpoint, name=name, position=position, workers=workers)
    maker.module.eval()
    return maker, {"recipe": asdict(recipe), "seconds": round(seconds)}


def _flow_parts(weights: Path) -> dict[str, list[Step]]:
    """Return the parts of the flow models. diffusers takes seconds to import: the other models do without it."""
    from embedded.makers import clip_scene, codec, editor, flow, language

    pipeline, detector = weights / SANA, weights / "detector-world"
    return {
        SANA: [
            (codec.RECIPE, partial(codec.CodecMaker, detector=detector)),
            (flow.RECIPE, partial(flow.SanaMaker, pipeline=pipeline)),
        ],
        LANGUAGE: [
            (language.SIGHT_RECIPE, language.SightMaker),
            (language.RECIPE, partial(language.LanguageMaker, sight=weights / LANGUAGE)),
            (language.VERDICT_RECIPE, partial(language.VerdictMaker, start=weights / LANGUAGE)),
        ],
        SCENES: [(clip_scene.RECIPE, clip_scene.ClipSceneMaker)],
        EDITOR: [(editor.RECIPE, partial(editor.EditorMaker, pipeline=pipeline))],
    }


def _train_everything(options: argparse.Namespace) -> list[str]:
    """Render the images, then train each model in a process of its own. Returns the names that failed."""
    from embedded.makers import dataset, drawings

    sizes = dataset.QUICK if options.quick else dataset.FULL
    images = {
        "base": (dataset.scenes, dataset.identities, dataset.faces, dataset.colors, dataset.episodes),
        "flow": (drawings.drawings,),
    }
    turns = {
        "base": ((SCORERS, WORKERS), ((TOKENIZER,), 1), ((POLICY,), 1)),
        "flow": (((SANA,), 1), ((LANGUAGE, SCENES), WORKERS)),
    }
    for part in ("base", "flow") if options.parts == "all" else (options.parts,):
        for draw in images[part]:
            draw(options.build, sizes)
        for names, workers in turns[part]:
            if failed := _train_models(options, names, workers):
                return failed
    return []


def _threads(name: str) -> int:
    """Return the threads of each operation; the policy's batches are computed by WORKERS threads of one each."""
    return WORKERS if name == TOKENIZER else 1


def _train_models(options: argparse.Namespace, names: Sequence[str], num_workers: int) -> list[str]:
    """Train each model in a process of its own, `num_workers` at a time; terminate them on Ctrl-C.

    Two single-threaded processes are faster than one with two threads.
    """
    waiting, failed = list(names), []
    running: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
    try:
        while waiting or running:
            for slot in range(num_workers):
                if slot not in running and waiting:
                    name = waiting.pop(0)
                    running[slot] = name, _start(options, name, slot)
                elif slot in running and running[slot][1].poll() is not None:
                    name, process = running.pop(slot)
                    failed += [name] if process.returncode else []
            time.sleep(0.2)
    finally:
        for _, process in running.values():
            process.terminate()
    return failed


def _start(options: argparse.Namespace, name: str, slot: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "embedded.makers", "--only", name, "--position", str(slot)]
    command += ["--weights", str(options.weights), "--build", str(options.build), *(["--quick"] * options.quick)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": str(_threads(name))})


if __name__ == "__main__":
    sys.exit(main())
