"""Run one training step of a full-size Show-o 512 with random weights: time of each phase, peak memory, use of the GPU.

    python -m benchmarks.show_o_512                      on a GPU: answers, G images of T steps, and their update
    python -m benchmarks.show_o_512 --device cpu         one forward and backward pass of one rollout (12 GiB)

A sequence has 1155 tokens: 129 of text and 1026 of the image. Random weights cost as much as trained ones. The share of
the GPU's peak counts the arithmetic of the model (three forward passes for a gradient, one for the reference), not the
blocks that checkpointing computes again. Rewards are random: no service is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.arguments import add_policy_options
from benchmarks.machine import command, machine
from benchmarks.memory import peak_bytes, reset_peak
from benchmarks.random_show_o import FULL, SMALL_VQ, TINY, build, halfway, prompt
from trainer.algorithms.losses import clipped_loss
from trainer.policy.show_o.config import ShowOConfig
from trainer.policy.show_o.magvit import MagvitConfig
from trainer.policy.show_o.policy import Sampling, ShowO
from trainer.settings.policy import LoraSettings
from trainer.types import Query

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12}  # dense bfloat16


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the step, print its figures, and write them as JSON if `--out` is given."""
    options = _parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU: give --device cpu for one forward and backward pass", file=sys.stderr)
        return 2
    found = whole_step(options) if options.device == "cuda" else one_pass(options)
    report = {"command": command(), "machine": machine(), **found}
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def one_pass(options: argparse.Namespace) -> dict[str, Any]:
    """Run one forward and backward pass of one rollout, half of whose positions are masked."""
    config = TINY if options.tiny else FULL
    policy = build(config, Sampling(), dtype=options.dtype, checkpointing=options.checkpointing)
    _adapt(policy, options)
    reset_peak()
    start = time.perf_counter()
    terms = policy.terms(halfway(policy, 1), 0)
    forward = time.perf_counter() - start
    (terms.new_BD * terms.mask_BD).mean().backward()  # type: ignore[no-untyped-call]
    norm = torch.stack([p.grad.norm() for p in policy.module.parameters() if p.grad is not None]).norm()
    return {
        **_what(policy, options),
        "seconds": {"forward": round(forward, 2), "both": round(time.perf_counter() - start, 2)},
        "peak_gib": round(peak_bytes() / GIB, 2),
        "gradient_norm": float(norm),
    }


def whole_step(options: argparse.Namespace) -> dict[str, Any]:
    """Run one step: answers, images, decoding, and an update over `loss_steps` of the denoising steps."""
    config, seconds = TINY if options.tiny else FULL, dict[str, float]()

    def timed(phase: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = work()
        if options.device == "cuda":
            torch.cuda.synchronize()
            memory[phase] = round(torch.cuda.max_memory_allocated() / GIB, 2)
            torch.cuda.reset_peak_memory_stats()
        seconds[phase] = round(time.perf_counter() - start, 3)
        return found

    memory: dict[str, float] = {}
    vq = SMALL_VQ if options.tiny else MagvitConfig()
    sampling = Sampling(denoising_steps=options.steps)
    build_options = {"vq": vq, "device": options.device, "dtype": options.dtype, "checkpointing": options.checkpointing}
    policy = timed("build", lambda: build(config, sampling, **build_options))
    _adapt(policy, options)
    policy.keep_reference()
    optimizer = torch.optim.AdamW(policy.parameter_groups()[0].parameters, lr=1e-6, fused=True)
    seeds = [(0, i) for i in range(options.group)]
    timed("answer", lambda: policy.answer([Query("what is w1 ?")] * options.group, seeds))
    prompts = [prompt(config, i) for i in range(options.group)]
    images = timed("draw", lambda: policy.denoise(policy.start(prompts, seeds), options.steps))
    timed("decode", lambda: policy.images(images))
    masked = timed("update", lambda: _update(policy, images, options))
    timed("optimizer", optimizer.step)
    flops = update_flops(config, options.group, options.loss_steps, masked, reference=True)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "none"
    peak = next((value for card, value in PEAK_FLOPS.items() if card in name), None)
    share = None if peak is None else round(flops / seconds["update"] / peak, 4)
    figures = {"gpu": name, "seconds": seconds, "peak_gib": memory, "update_tflop": round(flops / 1e12, 1)}
    return {**_what(policy, options), **figures, "update_share_of_peak": share}


def _update(policy: ShowO, images: Sequence[Any], options: argparse.Namespace) -> int:
    """Accumulate the gradient as `trainer.update` does; return the number of masked positions."""
    chosen = torch.linspace(0, options.steps - 1, options.loss_steps).long().tolist()
    advantage, size, masked = torch.linspace(-1, 1, len(images), device=policy.device), options.micro_batch, 0
    with policy.sharing(images):
        for step in chosen:
            for first in range(0, len(images), size):
                part = slice(first, first + size)
                terms = policy.terms(images[part], step, reference=True)
                loss, figures = clipped_loss(
                    terms.new_BD, terms.old_BD, terms.reference_BD, terms.mask_BD, advantage[part],
                    clip=0.2, beta=0.01, weight=1e-4, group_size=len(images),
                )  # fmt: skip
                loss.backward()  # type: ignore[no-untyped-call]
                masked += figures.decisions
    return masked


def update_flops(config: ShowOConfig, rollouts: int, steps: int, masked: int, *, reference: bool) -> float:
    """Return the multiplications and additions of an update, two for each weight that a token meets.

    Each image is read twice, with its prompt and without; texts once for all `steps`; the head at the `masked`
    positions of all steps together. A gradient takes twice the arithmetic of its forward pass.
    """
    phi, image = config.phi, config.num_vq_tokens + 2
    width, text = phi.hidden_size, config.max_text_length + 1
    of_token = 2 * (4 * width * width + 2 * width * phi.intermediate_size) * phi.num_hidden_layers
    of_pair = 4 * width * phi.num_hidden_layers  # of a row and a column that it attends to: scores, and their mix
    images = steps * rollouts * (2 * image * of_token + 2 * image * (image + text) * of_pair)
    texts = (rollouts + 1) * text * (of_token + text * of_pair)  # and the empty prompt
    head = 2 * width * config.codebook_size * masked
    return float((images + texts + head) * (3 + reference))


def _adapt(policy: ShowO, options: argparse.Namespace) -> None:
    if options.lora:
        policy.add_adapters(**LoraSettings().model_dump(), seed=0, base="random")


def _what(policy: ShowO, options: argparse.Namespace) -> dict[str, Any]:
    phi = policy.config.phi
    names = ("device", "group", "micro_batch", "steps", "loss_steps", "dtype", "checkpointing", "lora")
    chosen = {name: getattr(options, name) for name in names}
    size = sum(parameter.numel() for parameter in policy.module.parameters())
    tokens = policy.config.max_text_length + 1 + policy.config.num_vq_tokens + 2
    return {"parameters": size, "tokens": tokens, "layers": phi.num_hidden_layers, "width": phi.hidden_size, **chosen}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.show_o_512",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_policy_options(parser)
    parser.add_argument("--group", type=int, default=9, help="G, images of one prompt")
    parser.add_argument("--micro-batch", type=int, default=3, help="rollouts in a pass of the update")
    parser.add_argument("--steps", type=int, default=50, help="T, denoising steps")
    parser.add_argument("--loss-steps", type=int, default=50, help="denoising steps in the loss")
    parser.add_argument("--lora", action="store_true", help="adapters of the default settings instead of all weights")
    parser.add_argument("--tiny", action="store_true", help="a tiny policy: whether the script runs")
    parser.add_argument("--out", type=Path, help="a JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
