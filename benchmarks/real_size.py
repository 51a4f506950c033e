"""Measure the published scorers at full size: loading memory and time, and seconds per image.

    python -m benchmarks.real_size                      -> benchmarks/results/real_size.json
    python -m benchmarks.real_size --only ber --quick   one scorer, one repeat

The weights are random (`benchmarks.real_models`) in the published formats and load through the service's own settings
and scorers: those of sync_r1.toml with local model directories, and three preference scorers. Each scorer runs in its
own process; its models are written under `--dir` and removed afterwards. An interrupted run resumes: scorers already in
the results file with the same options are skipped, unless `--again` is given.

`load_ratio` is the peak of resident memory during loading (VmHWM, file-backed pages included, above the process with
its libraries imported) over the size of the weights files. Direct time is that of the same torch modules called again
on the tensors of a batch; `share_of_direct` is direct time over the scorer's time for that batch.
`outside_modules_s_per_image` is the rest of that time: preprocessing and our own code. `batch_difference` is the
largest difference between the values of a batch and of its items alone; the items' values must all differ. For GenEval
it compares the mean score of the detected objects, and its colour model must have run. The dtypes are those of
sync_r1.toml; `other_dtype` is one 512 px image in float32 instead of bfloat16, or the reverse.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from skimage import data

from benchmarks import real_models
from benchmarks.machine import command, machine
from services import settings
from services.models.module_stats import ParameterStats, record_modules
from services.scorers import registry
from services.scorers.base import Scorer, run_batch
from services.scorers.geneval import GenEvalSettings
from services.settings_types import ScorerSettings
from synod.contracts import GenEvalClause, GenEvalMetadata, Outcome, Reasoning, Score, ScoreItem

ROOT: Final = Path(__file__).parents[1]
CONFIG: Final = ROOT / "deploy/configs/sync_r1.toml"
GOAL_RATIO: Final = 1.25
GOAL_FROM_BYTES: Final = 500 * 10**6
BATCH: Final = 4
SIDES: Final = (512, 1024)
SECONDS: Final = 8  # of repeats at each size
MAX_REPEATS: Final = 5
# Each scorer's models and the setting that names each. _OTHERS: the settings of scorers that sync_r1.toml lacks.
MODELS: Final[dict[str, dict[str, str]]] = {
    "tier": {"ernie": "model"},
    "ber": {"blip2": "model"},
    "der": {"dinov2": "model"},
    "fer": {"facenet": "embedder.weights"},
    "geneval": {"mask2former": "detector.model", "clip_l": "color_model.model"},
    "pickscore": {"pickscore": "model"},
    "hps": {"hps": "weights"},
    "aesthetic": {"aesthetic_clip": "model.model", "aesthetic_head": "weights"},
}
_OTHERS: Final[dict[str, dict[str, Any]]] = {
    "pickscore": {"kind": "pickscore"},
    "hps": {"kind": "hps", "architecture": "ViT-H-14"},
    "aesthetic": {"kind": "aesthetic", "model": {"family": "transformers"}},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the scorers and write JSON after each; exit with 1 if one fails or misses the memory goal."""
    options = _parser().parse_args(arguments)
    if options.child:
        threading.Thread(target=_end_with_parent, args=(sys.stdin.fileno(), options.dir), daemon=True).start()
        print(json.dumps(measure(options.child, options.dir, options)))
        return 0
    report = _read(options.out)
    how = {"quick": options.quick, "tiny": options.tiny, "dtype": options.dtype}
    report |= {"hardware": _hardware(), "goals": {"load_ratio": GOAL_RATIO}}
    scorers: dict[str, Any] = report.setdefault("scorers", {})
    for name in options.only or MODELS:
        if not options.again and scorers.get(name, {}).get("options") == how:
            print(f"{name}: already measured (--again repeats it)")
            continue
        began_s = time.monotonic()
        print(f"{name}: writing its models", flush=True)
        scorers[name] = {"command": command(), "options": how, **_in_process(name, options)}
        print(f"{name}: {_summary(scorers[name])} ({time.monotonic() - began_s:.0f} s in all)", flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"-> {options.out}")
    bad = [name for name, one in scorers.items() if "error" in one or not one["load_goal_met"]]
    return 1 if bad else 0


def write_models(name: str, folder: Path, tiny: bool) -> None:
    """Write the scorer's models, each into a folder of its name."""
    for model in MODELS[name]:
        real_models.make(model, folder / model, tiny)


def settings_of(name: str, folder: Path, dtype: str | None = None, tiny: bool = False) -> ScorerSettings:
    """Return the scorer's settings, on the models of `write_models`; from sync_r1.toml if it has them."""
    places = {where: str(_source(folder / model)) for model, where in MODELS[name].items()}
    if name not in _OTHERS:
        start = f"SYNOD__SCORERS__{name.upper()}__"
        keys = {start + where.upper().replace(".", "__"): source for where, source in places.items()}
        if dtype:
            keys[f"{start}SERVING__DTYPE"] = dtype
        found = settings.load(CONFIG, keys).scorers[name]
        if isinstance(found, GenEvalSettings):  # a model directory brings its own weights
            colors = found.color_model.model_copy(update={"pretrained": None})
            return found.model_copy(update={"color_model": colors})
        return found
    tree = json.loads(json.dumps(_OTHERS[name])) | {"serving": {"dtype": dtype or "bfloat16"}}
    if name == "hps" and tiny:
        tree["architecture"] = str(folder / "hps")
    for where, source in places.items():
        *outer, last = where.split(".")
        (tree[outer[0]] if outer else tree)[last] = source
    return registry.SETTINGS.validate_python(tree)


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one scorer in this process, which must have loaded no model before."""
    from services.models import aesthetic, blip2, dinov2, face, mask2former, open_clip, text_encoder  # noqa: F401

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    one = settings_of(name, folder, options.dtype, options.tiny)
    files = [f for f in folder.rglob("*") if f.suffix in (".safetensors", ".bin", ".pt", ".pth")]
    stored = sum(f.stat().st_size for f in files)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    empty = _memory()
    began_s = time.perf_counter()
    with record_modules() as modules:
        scorer = registry.build(name, one)
    load_s = time.perf_counter() - began_s
    loaded = _memory()
    peak = loaded["VmHWM"] - empty["VmRSS"]
    held = ParameterStats.of(modules)
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for module in modules for p in module.parameters()),
        "weight_bytes": stored,
        "held_bytes": held.parameter_bytes,
        "dtype": held.dtype,
        "load_s": round(load_s, 2),
        "load_peak_bytes": peak,
        "load_ratio": round(peak / stored, 3),
        "load_goal_met": stored < GOAL_FROM_BYTES or peak <= GOAL_RATIO * stored,
        "resident_bytes": {
            "empty": empty["VmRSS"],
            "anonymous_after": loaded["RssAnon"] - empty["RssAnon"],
            "file_after": loaded["RssFile"] - empty["RssFile"],
        },
        "sizes": {},
    }
    for side in SIDES[:1] if options.quick else SIDES:
        found["sizes"][str(side)] = timed(scorer, side, options.quick)
        print(f"{name}: {side} px {found['sizes'][str(side)]}", file=sys.stderr, flush=True)
    del scorer
    other = "bfloat16" if held.dtype == "float32" else "float32"
    found["other_dtype"] = _other_dtype(name, folder, other, options.tiny)
    return found


def timed(scorer: Scorer, side: int, quick: bool) -> dict[str, Any]:
    """Measure a scorer at one image size; raise RuntimeError if its items do not differ in value."""
    items = items_of(2 if quick else BATCH, side)
    alone = [compared(outcome) for item in items for outcome in run_batch(scorer, [item])]
    with recording() as calls:
        began_s = time.perf_counter()
        together = [compared(outcome) for outcome in run_batch(scorer, items)]
        outside_s = time.perf_counter() - began_s - calls.inside_s
    if len(set(alone)) < len(alone):
        raise RuntimeError(f"the values {alone} of different items are not all different")
    single_s: list[float] = []
    batch_s: list[float] = []
    direct_s: list[float] = []
    ends_s = time.monotonic() + (0 if quick else SECONDS)
    while not single_s or (len(single_s) < MAX_REPEATS and time.monotonic() < ends_s):
        single_s.append(_seconds(lambda: run_batch(scorer, items[:1])))
        batch_s.append(_seconds(lambda: run_batch(scorer, items)) / len(items))
        direct_s.append(_seconds(calls.again) / len(items))
    batch, direct = statistics.median(batch_s), statistics.median(direct_s)
    return {
        "repeats": len(single_s),
        "seconds_per_image": round(statistics.median(single_s), 4),
        "batch": len(items),
        "seconds_per_image_in_batch": round(batch, 4),
        "direct_seconds_per_image_in_batch": round(direct, 4),
        "share_of_direct": round(direct / batch, 3),
        "outside_modules_s_per_image": round(outside_s / len(items), 4),
        "batch_difference": max(abs(a - b) for a, b in zip(alone, together, strict=True)),
        "values": [round(value, 6) for value in together],
    }


def _other_dtype(name: str, folder: Path, dtype: str, tiny: bool) -> dict[str, Any]:
    """Time one image of 512 px in the other dtype: the second of two calls."""
    scorer = registry.build(name, settings_of(name, folder, dtype, tiny))
    items = items_of(1, SIDES[0])
    run_batch(scorer, items)
    return {"dtype": dtype, "seconds_per_image": round(_seconds(lambda: run_batch(scorer, items)), 4)}


def _seconds(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


@dataclass
class _Calls:
    """Outermost calls of torch modules with their inputs, and the seconds spent inside them."""

    made: list[tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    inside_s: float = 0.0

    @torch.inference_mode()
    def again(self) -> None:
        for module, inputs, named in self.made:
            module(*inputs, **named)


@contextmanager
def recording() -> Iterator[_Calls]:
    """Record the module calls made within the context, with their tensors."""
    calls, depth, began_s = _Calls(), 0, 0.0

    def enter(module: torch.nn.Module, inputs: Any) -> None:
        nonlocal depth, began_s
        if depth == 0:
            began_s = time.perf_counter()
        depth += 1

    def leave(module: torch.nn.Module, inputs: Any, named: Any, output: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            calls.inside_s += time.perf_counter() - began_s
            calls.made.append((module, inputs, named))

    hooks = torch.nn.modules.module
    handles = [
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave, with_kwargs=True),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def items_of(count: int, side: int) -> list[ScoreItem]:
    """Return distinct items with every input that a scorer reads: a photo with a face, side x side px."""
    photo = Image.fromarray(data.astronaut()).resize((side, side), Image.Resampling.BICUBIC)
    reference = np.asarray(photo)
    words = real_models.WORDS  # other words would all be the unknown token
    items = []
    for number in range(count):
        shade = reference.astype(np.float32) * (1 - 0.4 * (number + 1) / (count + 1))
        own = f"{words[number % len(words)]} {words[number // len(words) % len(words)]}"
        items.append(
            ScoreItem(
                image=shade.astype(np.uint8),
                prompt=f"a photo of a red person with {own}",
                references=(reference,),
                reasoning=Reasoning(f"the person with {own}", ("a red hat", "a blue car"), (1, 0)),
                geneval=GenEvalMetadata("colors", (GenEvalClause("person", 1, color="red"),)),
            )
        )
    return items


def compared(outcome: Outcome) -> float:
    """Return the number by which batches are compared.

    This is the value, or the objects' mean score for GenEval, whose values are 0 or 1. Raises RuntimeError without a
    finite score, or if GenEval detected nothing or classified no colour.
    """
    if not isinstance(outcome, Score) or not np.isfinite(outcome.value):
        raise RuntimeError(f"the score is not finite: {outcome}")
    if (objects := (outcome.detail or {}).get("objects")) is None:
        return outcome.value
    if all(one["color"] is None for one in objects):
        raise RuntimeError(f"GenEval's colour model did not run: {len(objects)} objects, none with a colour")
    return float(np.mean([one["score"] for one in objects]))


def _in_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    if options.dir is not None:
        options.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix=f"{name}-") as place:
        try:
            write_models(name, Path(place), options.tiny)
            line = [sys.executable, "-m", "benchmarks.real_size", "--child", name, "--dir", place]
            line += [f"--{flag}" for flag in ("quick", "tiny") if getattr(options, flag)]
            line += ["--dtype", options.dtype] if options.dtype else []
            # The child ends when its standard input closes, also if this process is killed.
            with subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                printed = child.stdout.read()
        finally:
            for folder in Path(place).iterdir():
                shutil.rmtree(folder)
    if child.returncode:
        return {"error": f"exit status {child.returncode}; its stderr is above"}
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def _end_with_parent(pipe: int, folder: Path) -> None:
    """Remove the models and end this process when the process at the other end of `pipe` has ended."""
    os.read(pipe, 1)  # sys.stdin.read would hold a lock that the interpreter needs at exit
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _source(folder: Path) -> Path:
    """Return what settings name for a model: its single weights file (.pt, .pth), else its folder."""
    weights = [file for file in folder.iterdir() if file.suffix in (".pt", ".pth")]
    return weights[0] if weights else folder


def _memory() -> dict[str, int]:
    """Return memory figures in bytes, by the kernel's names."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {
        words[0][:-1]: int(words[1]) * 1024
        for words in lines
        if words[0] in ("VmHWM:", "VmRSS:", "RssAnon:", "RssFile:")
    }


def _hardware() -> dict[str, Any]:
    flags = Path("/proc/cpuinfo").read_text()
    packages = {name: version(name) for name in ("open_clip_torch", "facenet_pytorch", "safetensors")}
    return machine() | packages | {"bfloat16_instructions": "avx512_bf16" in flags or "amx_bf16" in flags}


def _summary(one: Mapping[str, Any]) -> str:
    if "error" in one:
        return str(one["error"])
    times = ", ".join(f"{case['seconds_per_image']:.2f} s at {side} px" for side, case in one["sizes"].items())
    size = f"{one['parameters'] / 1e6:.0f} M parameters, {one['weight_bytes'] / 1e9:.2f} GB"
    return f"{size}, loaded at {one['load_ratio']:.2f} of it in {one['load_s']:.1f} s; {times}"


def _read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_size", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=tuple(MODELS), metavar="NAME", help=f"only: {', '.join(MODELS)}")
    parser.add_argument("--quick", action="store_true", help="512 px, one repeat")
    parser.add_argument("--tiny", action="store_true", help="small models of the same families")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="instead of the settings' dtype")
    parser.add_argument("--again", action="store_true", help="also measure scorers already in the results file")
    parser.add_argument("--dir", type=Path, help="folder for models, up to 5 GB (default: the temporary folder)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/real_size.json", help="the result (%(default)s)"
    )
    parser.add_argument("--child", choices=tuple(MODELS), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
