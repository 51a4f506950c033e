"""Measure the memory that a batch of large images takes beyond the loaded scorer.

    python -m benchmarks.memory                         -> benchmarks/results/memory.json

Each case runs in its own process on one CPU thread: load the scorer, score a small image, reset the process's peak
(VmHWM), and score a batch as a replica does, split by its cost. The request's own images are not counted. The models
are small, so that the figures show what grows with the images: preprocessing, maps and masks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.machine import command, machine
from synod.contracts import GenEvalClause, GenEvalMetadata, Outcome, ScoreItem

ROOT: Final = Path(__file__).parents[1]
EMBEDDED: Final = ROOT / "embedded/weights"
BATCHES: Final = ((1, 1024), (32, 1024), (1, 4096), (8, 4096))  # images, side in pixels
_DETECTOR: Final = {"family": "semantic", "model": str(EMBEDDED / "detector-world")}
_CLIP: Final = {"family": "open_clip", "model": str(EMBEDDED / "clip-world")}

# Every kind that reads pixels and has a small model in the repository or its packages.
CASES: Final[Mapping[str, Mapping[str, Any]]] = {
    "ber": {"kind": "ber", "model": str(EMBEDDED / "blip2-world")},
    "der": {"kind": "der", "model": str(EMBEDDED / "dinov2-world")},
    "clip_t": {"kind": "clip_t", "model": _CLIP},
    "clip_i": {"kind": "clip_i", "model": _CLIP},
    "geneval": {
        "kind": "geneval",
        "detector": _DETECTOR,
        "color_model": {"family": "open_clip", "model": str(EMBEDDED / "clip-world")},
    },
    "geneval_mask2former": {
        "kind": "geneval",
        "detector": {"family": "mask2former", "model": "mask2former"},
        "color_model": {"family": "open_clip", "model": str(EMBEDDED / "clip-world")},
    },
    "fer": {
        "kind": "fer",
        "finder": {"family": "detector", "detector": _DETECTOR},
        "embedder": {"family": "small", "model": str(EMBEDDED / "face-world")},
    },
    "fer_mtcnn": {
        "kind": "fer",
        "finder": {"family": "mtcnn"},
        "embedder": {"family": "small", "model": str(EMBEDDED / "face-world")},
    },
    "jpeg": {"kind": "jpeg", "direction": "compressibility"},
    "psnr": {"kind": "psnr"},
    "ocr": {"kind": "ocr"},
}


def reset_peak() -> None:
    """Reset the process's peak of resident memory to its current value."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the peak of resident memory since the last reset."""
    return _status("VmHWM")


def resident_bytes() -> int:
    """Return the current resident memory."""
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(name: str, images: int, side: int) -> dict[str, Any]:
    """Measure one case in this process. Raises RuntimeError if an item fails."""
    import torch

    from benchmarks import real_models
    from services.backends import LocalBackend
    from services.scorers import registry

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        case = dict(CASES[name])
        if case.get("detector", {}).get("family") == "mask2former":
            case["detector"] = {"family": "mask2former", "model": folder}
            real_models.mask2former(Path(folder), tiny=True)
        settings: Any = registry.SETTINGS.validate_python(case)
        backend = LocalBackend({name: registry.build(name, settings)})

    async def run(items: Sequence[ScoreItem]) -> list[Outcome]:
        staged = await backend.stage(tuple(items), 1)
        return await backend.score(name, staged, range(len(items)), 3600.0)

    async def both() -> list[Outcome]:
        await run([_item(64, 0)])
        items = [_item(side, seed) for seed in range(images)]
        reset_peak()
        before.append(resident_bytes())
        outcomes = await run(items)
        await backend.close()
        return outcomes

    before: list[int] = []
    outcomes = asyncio.run(both())
    failed = [outcome for outcome in outcomes if not hasattr(outcome, "value")]
    if failed:
        raise RuntimeError(f"{name}: {failed[0]}")
    mib = (peak_bytes() - before[0]) / 2**20
    return {"scorer": name, "images": images, "side": side, "peak_mib": round(mib)}


def _item(side: int, seed: int) -> ScoreItem:
    """Return an item with every input that the kinds need; its reference has the same size."""
    image = _image(side, seed)
    clauses = (GenEvalClause("person", 1), GenEvalClause("dog", 1, color="red"))
    return ScoreItem(
        image=image,
        prompt='a red cat that says "hello"',
        references=(image[::-1],),
        geneval=GenEvalMetadata(tag="colors", include=clauses),
    )


def _image(side: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, side // 8, axis=0), side // 8, axis=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each case in its own process and write JSON."""
    options = _parser().parse_args(arguments)
    if options.case:
        name, images, side = options.case
        print(json.dumps(measure(name, int(images), int(side))))
        return 0
    cases = []
    for name in options.scorers or CASES:
        for images, side in BATCHES:
            case = [name, str(images), str(side)]
            line = [sys.executable, "-m", "benchmarks.memory", "--case", *case]
            ran = subprocess.run(line, capture_output=True, text=True, check=False)
            if ran.returncode:
                print(f"{' '.join(case)}: {ran.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                return 1
            cases.append(json.loads(ran.stdout.splitlines()[-1]))
            print(f"{name:20} {images:3} x {side} px: {cases[-1]['peak_mib']} MiB", flush=True)
    report = {"command": command(), "hardware": machine(), "cases": cases}
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scorers", nargs="+", choices=tuple(CASES), help="only these")
    parser.add_argument("--case", nargs=3, metavar=("SCORER", "IMAGES", "SIDE"), help="one case, in this process")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/memory.json", help="the result (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
