"""Measure the paper's scorers on this GPU: full-size models, random weights, no network, one file.

    python -m benchmarks.gpu_scorers --out gpu_scorers.json     on a machine with the project and its packages
    python gpu_scorers.py --out gpu_scorers.json                the models alone: needs torch, transformers, open_clip
    python gpu_scorers.py --quick --device cpu --tiny           what the tests run

Per model and batch size, in bfloat16, eager and compiled: images (or texts) per second, the model's FLOP/s as a share
of the FLOP/s of a matrix product measured in the same run, and peak memory; then images per second from JPEG files,
decoding and resizing included. Random weights cost as much as trained ones. A failed case records its error.

Per scorer, within the project: the models of `benchmarks.real_models` loaded through the service's own settings and
scorers (`benchmarks.real_size`): images per second, share of the matrix product and peak memory for batches of decoded
images; and Sync-R1's four rewards in one process, run in turn on the same images. `goals` compares the figures with
their goals, and `missing` lists what this run did not measure.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

BATCHES = (1, 8, 32, 128)
TOKENS = 64
IMAGE = 512  # side in px, as of generated images
GIGA = 1e9
REWARDS = ("tier", "ber", "der", "fer")  # Sync-R1's, in the ensemble's order
# Goals for one data-centre GPU: shares of the measured matrix product, and images per second.
GOALS = {
    ("models", "ber", "share_of_matmul"): 0.5,
    ("models", "der", "share_of_matmul"): 0.35,
    ("scorers", "geneval", "items_per_s"): 20.0,
    ("scorers", "sync_r1", "items_per_s"): 100.0,
}


@dataclass(frozen=True)
class Model:
    """A model: `build(tiny)`, `side` of its input in px (None: text), submodules to compile (none: all)."""

    build: Callable[[bool], Any]
    forward: Callable[[Any, torch.Tensor], torch.Tensor]
    side: int | None
    tiny_side: int = 56
    parts: tuple[str, ...] = ()


def ernie(tiny: bool) -> Any:
    """ERNIE 2.0 base (English), TIER's text encoder."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return transformers.ErnieModel(transformers.ErnieConfig(vocab_size=30522, **(sizes if tiny else {})))


def blip2(tiny: bool) -> Any:
    """BLIP-2 with ViT-g for image-text matching at 224 px, BER's model."""
    vision = {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16}
    former = {"encoder_hidden_size": 1408}
    if tiny:
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        former = {"encoder_hidden_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
        former |= {"num_attention_heads": 4}
    config = transformers.Blip2Config(
        vision_config={**vision, "image_size": 56 if tiny else 224, "patch_size": 14},
        qformer_config={**former, "vocab_size": 30523, "use_qformer_text_input": True},
        text_config=transformers.OPTConfig(
            vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, ffn_dim=8
        ).to_dict(),
        num_query_tokens=32,
        image_text_hidden_size=256,
    )
    return transformers.Blip2ForImageTextRetrieval(config)


def dinov2(tiny: bool) -> Any:
    """DINOv2 base, DER's model."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4} if tiny else {}
    return transformers.Dinov2Model(transformers.Dinov2Config(image_size=56 if tiny else 518, patch_size=14, **sizes))


def mask2former(tiny: bool) -> Any:
    """Mask2Former with Swin-S for COCO's 80 classes, GenEval's detector."""
    depths, width = ([1, 1, 1, 1], 24) if tiny else ([2, 2, 18, 2], 96)
    backbone = transformers.SwinConfig(
        embed_dim=width,
        depths=depths,
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(backbone_config=backbone.to_dict(), num_labels=80)
    return transformers.Mask2FormerForUniversalSegmentation(config)


def clip(tiny: bool) -> Any:
    """CLIP ViT-L/14 at 224 px, GenEval's colour model."""
    import open_clip

    if not tiny:
        return open_clip.CLIP(**open_clip.get_model_config("ViT-L-14-quickgelu"))
    vision = {"image_size": 56, "layers": 2, "width": 32, "head_width": 8, "patch_size": 14}
    text = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2}
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)


def facenet(tiny: bool) -> Any:
    """InceptionResnetV1, FER's embedder, from facenet-pytorch if that is installed."""
    from facenet_pytorch import InceptionResnetV1

    return InceptionResnetV1(pretrained=None)


def _blip2_forward(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    patches = model.vision_model(pixel_values=pixels).last_hidden_state
    queries = model.query_tokens.expand(len(pixels), -1, -1)
    found = model.qformer(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state
    projected: torch.Tensor = model.vision_projection(found)
    return projected


MODELS = {
    "tier": Model(ernie, lambda m, ids: m(input_ids=ids).last_hidden_state, None),
    "ber": Model(blip2, _blip2_forward, 224, parts=("vision_model", "qformer")),
    "der": Model(dinov2, lambda m, pixels: m(pixel_values=pixels).last_hidden_state, 224),
    "fer": Model(facenet, lambda m, pixels: m(pixels), 160, tiny_side=160),
    "geneval_detector": Model(mask2former, lambda m, pixels: m(pixel_values=pixels).masks_queries_logits, 800, 64),
    "geneval_colour": Model(clip, lambda m, pixels: m.encode_image(pixels), 224, parts=("visual",)),
}


def parameters(name: str, tiny: bool = False) -> int:
    """Return a model's number of parameters, counted on the meta device without allocation."""
    with torch.device("meta"):
        return sum(p.numel() for p in MODELS[name].build(tiny).parameters())


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a line per case, write JSON. The exit status is 1 if a case failed."""
    options = _parser().parse_args(arguments)
    torch.manual_seed(0)
    device = torch.device(options.device)
    seconds = 0.05 if options.quick else 1.0
    peak = matmul_flops(device, 256 if options.quick else 8192, seconds)
    report: dict[str, Any] = {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "hardware": hardware(device),
        "matmul_tflops": peak / 1e12,
        "models": {},
    }
    print(f"{report['hardware']['device']}: bfloat16 matrix product {peak / 1e12:.2f} TFLOP/s")
    for name in MODELS if options.models is None else options.models:
        report["models"][name] = measure(name, options, device, peak, seconds)
        _write(report, options.out)  # keep the results if the run is interrupted
    report["scorers"] = measure_scorers(options, device, peak, seconds)
    report["goals"] = goals(report)
    report["missing"] = missing(report, device)
    _write(report, options.out)
    for line in (*report["goals"], *report["missing"]):
        print(line)
    print(f"-> {options.out}")
    measured = [*report["models"].values(), *report["scorers"].values()]
    return 1 if any("error" in case for one in measured for case in one.get("cases", ())) else 0


def measure_scorers(
    options: argparse.Namespace, device: torch.device, peak: float, seconds: float
) -> dict[str, dict[str, Any]]:
    """Measure each scorer, and Sync-R1's rewards together; "skipped" if the project is not installed."""
    try:
        from benchmarks import real_size
    except ImportError as error:
        return {"all": {"skipped": f"{error}: run `python -m benchmarks.gpu_scorers` in the project"}}
    found: dict[str, dict[str, Any]] = {}
    rewards: dict[str, Any] = {}
    for name in real_size.MODELS if options.scorers is None else options.scorers:
        scorer = _scorer(name, options, device)
        found[name] = _scorer_cases(name, [scorer], options, device, peak, seconds)
        if name in REWARDS:
            rewards[name] = scorer
        del scorer
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if set(REWARDS) <= rewards.keys():
        found["sync_r1"] = _scorer_cases("sync_r1", [rewards[n] for n in REWARDS], options, device, peak, seconds)
    return found


def _scorer(name: str, options: argparse.Namespace, device: torch.device) -> Any:
    """Build a scorer of the service on random weights in a temporary folder."""
    from benchmarks import real_size
    from services.scorers import registry

    with tempfile.TemporaryDirectory(dir=options.dir, prefix=f"{name}-") as place:
        real_size.write_models(name, Path(place), options.tiny)
        one = real_size.settings_of(name, Path(place), None, options.tiny)
        one = one.model_copy(update={"serving": one.serving.model_copy(update={"device": str(device)})})
        return registry.build(name, one)


def _scorer_cases(
    name: str, scorers: list[Any], options: argparse.Namespace, device: torch.device, peak: float, seconds: float
) -> dict[str, Any]:
    from benchmarks import real_size
    from services.scorers.base import run_batch

    cases: list[dict[str, Any]] = []
    items: list[Any] = []
    flops = 0

    def run() -> None:
        for scorer in scorers:
            run_batch(scorer, items)

    for batch in (1, 2) if options.quick else BATCHES:
        case: dict[str, Any] = {"batch": batch}
        try:
            items = real_size.items_of(batch, IMAGE)
            if not flops:
                with FlopCounterMode(display=False) as counter:
                    run()
                flops = int(counter.get_total_flops()) // batch
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            case["items_per_s"] = batch / median_s(run, device, seconds)
            case["share_of_matmul"] = flops * case["items_per_s"] / peak
            case["peak_bytes"] = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
            result = f"{case['items_per_s']:9.1f}/s  {case['share_of_matmul']:6.1%}"
        except RuntimeError as error:  # out of memory
            case["error"] = str(error)[:300]
            result = f"failed: {case['error'][:100]}"
        print(f"{name:17} batch {batch:4} scorer   {result}", flush=True)
        cases.append(case)
    return {"flops_per_item": flops, "cases": cases}


def goals(report: dict[str, Any]) -> list[str]:
    """Return a line for each measured goal, with the best batch's figure."""
    lines = []
    for (section, name, figure), wanted in GOALS.items():
        reached = [case[figure] for case in report[section].get(name, {}).get("cases", ()) if figure in case]
        if reached:
            verdict = "met" if max(reached) >= wanted else "missed"
            lines.append(f"{verdict}: {section} {name} {figure} {max(reached):.3g}, goal {wanted:g}")
    return lines


def missing(report: dict[str, Any], device: torch.device) -> list[str]:
    """Return a line for each figure that this run did not measure."""
    lines = [] if device.type == "cuda" else [f"missing: peak memory and a GPU's figures; this ran on {device.type}"]
    for section, name, figure in GOALS:
        if not any(figure in case for case in report[section].get(name, {}).get("cases", ())):
            lines.append(f"missing: {section} {name} {figure}")
    for section in ("models", "scorers"):
        lines += [f"missing: {section} {n}, {one['skipped']}" for n, one in report[section].items() if "skipped" in one]
    return lines


def _write(report: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")


def measure(
    name: str, options: argparse.Namespace, device: torch.device, peak: float, seconds: float
) -> dict[str, Any]:
    """Measure one model; {"skipped": reason} if a package is missing."""
    model = MODELS[name]
    try:
        module = model.build(options.tiny)
    except ImportError as error:
        print(f"{name}: skipped, {error}")
        return {"skipped": str(error)}
    module = module.to(device, torch.bfloat16).eval().requires_grad_(False)
    flops = forward_flops(model, module, _inputs(model, 1, options.tiny, device))
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in module.parameters()),
        "parameter_bytes": sum(p.numel() * p.element_size() for p in module.parameters()),
        "flops_per_item": flops,
        "cases": [],
    }
    for compiled in (False,) if options.no_compile else (False, True):
        if compiled:
            for part in [module.get_submodule(part) for part in model.parts] or [module]:
                part.compile(dynamic=True)
        for batch in (1, 2) if options.quick else BATCHES:
            case: dict[str, Any] = {"batch": batch, "compiled": compiled}
            try:
                case |= one_case(model, module, batch, options.tiny, device, seconds)
                case["share_of_matmul"] = flops * case["items_per_s"] / peak
                result = f"{case['items_per_s']:9.1f}/s  {case['share_of_matmul']:6.1%}"
            except RuntimeError as error:  # out of memory, or no compiler
                case["error"] = str(error)[:300]
                result = f"failed: {case['error'][:100]}"
            print(f"{name:17} batch {batch:4} {'compiled' if compiled else 'eager   '} {result}", flush=True)
            found["cases"].append(case)
    return found


@torch.inference_mode()
def one_case(model: Model, module: Any, batch: int, tiny: bool, device: torch.device, seconds: float) -> dict[str, Any]:
    """Measure items per second of the model alone and from JPEG, and peak device bytes (None on a CPU)."""
    inputs = _inputs(model, batch, tiny, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    each_s = median_s(lambda: model.forward(module, inputs), device, seconds)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    case: dict[str, Any] = {"items_per_s": batch / each_s, "peak_bytes": memory}
    if model.side is not None:
        side = model.tiny_side if tiny else model.side
        files = [_jpeg(number) for number in range(min(batch, 8))]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            encoded = [files[i % len(files)] for i in range(batch)]
            whole_s = median_s(lambda: model.forward(module, _decoded(encoded, side, device, threads)), device, seconds)
        case["items_per_s_from_jpeg"] = batch / whole_s
    return case


def matmul_flops(device: torch.device, side: int, seconds: float) -> float:
    """Measure the FLOP/s of the bfloat16 product of two square matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / median_s(lambda: a @ b, device, seconds)


def forward_flops(model: Model, module: Any, one: torch.Tensor) -> int:
    """Return the FLOPs of one item: two per multiply-add of matrix products and convolutions."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.forward(module, one)
    return int(counter.get_total_flops())


def median_s(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the median time of a run, after two warm-up runs, over at least three runs and `seconds`."""
    run()
    run()
    return statistics.median(_times(run, device, seconds))


def _times(run: Callable[[], object], device: torch.device, seconds: float) -> Iterator[float]:
    spent_s, runs = 0.0, 0
    while runs < 3 or spent_s < seconds:
        _wait(device)
        began_s = time.perf_counter()
        run()
        _wait(device)
        took_s = time.perf_counter() - began_s
        spent_s, runs = spent_s + took_s, runs + 1
        yield took_s


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _inputs(model: Model, batch: int, tiny: bool, device: torch.device) -> torch.Tensor:
    """Return token ids [N L] or pixels [N 3 S S]."""
    if model.side is None:
        return torch.randint(1000, 30000, (batch, TOKENS), device=device)
    side = model.tiny_side if tiny else model.side
    return torch.randn(batch, 3, side, side, device=device, dtype=torch.bfloat16)


def _jpeg(seed: int) -> bytes:
    """Return a JPEG file with detail at several scales."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((IMAGE, IMAGE))
    noise = rng.integers(-12, 13, (IMAGE, IMAGE, 3))
    stream = io.BytesIO()
    pixels = np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def _decoded(files: list[bytes], side: int, device: torch.device, threads: ThreadPoolExecutor) -> torch.Tensor:
    """Return [N 3 S S] in bfloat16: decoded and resized by `threads`, scaled on the device."""

    def one(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.asarray(Image.open(io.BytesIO(data)).resize((side, side), Image.Resampling.BICUBIC))

    pixels = torch.from_numpy(np.stack(list(threads.map(one, files)))).to(device)
    return (pixels.permute(0, 3, 1, 2).to(torch.bfloat16) - 127.5) / 64.0


def hardware(device: torch.device) -> dict[str, Any]:
    """Return the device and package versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "device_bytes": torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="the device of the models (cuda)")
    parser.add_argument("--models", nargs="*", choices=tuple(MODELS), help="only these; none without a name")
    parser.add_argument("--scorers", nargs="*", metavar="NAME", help="only these scorers; none without a name")
    parser.add_argument("--dir", type=Path, help="folder for the scorers' models, up to 5 GB")
    parser.add_argument("--tiny", action="store_true", help="small models of the same families")
    parser.add_argument("--quick", action="store_true", help="two batch sizes, briefly")
    parser.add_argument("--no-compile", action="store_true", help="eager only")
    parser.add_argument("--out", type=Path, default=Path("gpu_scorers.json"), help="the result (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
