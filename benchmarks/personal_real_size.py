"""Run one step of each personalization stage on a full-size Show-o 512 with random weights: seconds and peak memory.

    python -m benchmarks.personal_real_size --device cpu       about 12 GiB: rows alone have gradients
    python -m benchmarks.personal_real_size --device cuda

Stages and batches are those of `synod personalize` with the paper's tokens: 25 rows are the name, K = 16 and M = 8; 33
have N = 8, too. A step encodes its images, asks its questions in sequences of 1155 tokens, and updates the rows. Random
weights cost as much as trained ones; the losses are those of a model that guesses.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch

from benchmarks.arguments import add_policy_options
from benchmarks.machine import command, commit, machine
from benchmarks.memory import peak_bytes, reset_peak
from benchmarks.random_show_o import FULL, SMALL_VQ, TINY, build
from synod.contracts import Concept
from trainer.personalize import stages
from trainer.personalize.examples import Photos
from trainer.personalize.records import ConceptRecord
from trainer.personalize.tokens import Rows, base_digest, insert, remove
from trainer.policy.show_o.magvit import MagvitConfig
from trainer.policy.show_o.policy import Sampling, ShowO
from trainer.policy.show_o.vocabulary import ConceptTokens
from trainer.settings.personalize import PersonalizeSettings

GIB: Final = 2**30
NAME: Final = "<new>"
CASES: Final = (("25 rows", (16, 8, 0), (1, 2)), ("33 rows", (16, 8, 8), (1, 2, 3)))  # tokens K, M, N, and stages
PHOTOGRAPHS: Final = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, print their figures, and write them as JSON if `--out` is given."""
    options = _parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU: give --device cpu", file=sys.stderr)
        return 2
    report = {"command": command(), "commit": commit(), "machine": machine(), **measure(options)}
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of building the model, and of each step of each case."""
    clock = _Clock(options.device)
    config, vq = (TINY, SMALL_VQ) if options.tiny else (FULL, MagvitConfig())
    policy = build(
        config, Sampling(), vq=vq, device=options.device, dtype=options.dtype, checkpointing=options.checkpointing
    )
    policy.module.requires_grad_(False)
    built, before = clock.lap(), base_digest(policy)
    concept, photos = _concept(policy.image_side)
    found: dict[str, Any] = {}
    for name, counts, numbers in CASES:
        tokens = ConceptTokens(NAME, *((2, 1, counts[2] // 8) if options.tiny else counts))
        insert(policy, tokens, _random_rows(tokens.count, policy.config.phi.hidden_size))
        found[name] = {f"stage {number}": _step(policy, concept, photos, number, options, clock) for number in numbers}
        remove(policy, NAME)
    return {
        "parameters": sum(parameter.numel() for parameter in policy.module.parameters()),
        "tokens_of_a_sequence": config.max_text_length + 1 + config.num_vq_tokens + 2,
        "uniform_image_loss": round(math.log(config.codebook_size), 3),
        **{
            name: getattr(options, name) for name in ("device", "dtype", "checkpointing", "questions", "images", "tiny")
        },
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
        "build": built,
        "cases": found,
        "base_unchanged": base_digest(policy) == before,
    }


def _step(
    policy: ShowO, concept: ConceptRecord, photos: Photos, number: int, options: argparse.Namespace, clock: _Clock
) -> dict[str, Any]:
    """Make one update of a stage, as `stages.train_stage` does, and return its figures."""
    recipe = stages.RECIPES[number]
    with TemporaryDirectory() as folder:
        settings = _settings(Path(folder), options)
    clock.lap()
    batch = next(stages.epoch_batches(policy, concept, photos, settings, number, 0))
    data = clock.lap()
    policy.train_rows(stages.trained_ids(policy, NAME, recipe.parts))
    trained = [parameter for parameter in policy.module.parameters() if parameter.requires_grad]
    lr = settings.stage(number).lr
    optimizer = torch.optim.AdamW(trained, lr, weight_decay=recipe.weight_decay, eps=recipe.eps)
    with stages.attention(policy):
        losses = stages.update(policy, optimizer, batch, photos, settings.t2i_loss)
    update = clock.lap()
    states = [value for one in optimizer.state.values() for value in one.values() if torch.is_tensor(value)]
    policy.keep_rows()
    return {
        "questions": len(batch.questions),
        "images": len(batch.prompts),
        "encode": data,
        "update": update,
        "trained_numbers": sum(parameter.numel() for parameter in trained),
        "optimizer_mib": round(sum(value.numel() * value.element_size() for value in states) / 2**20, 2),
        **{name: round(value, 3) for name, value in losses.items()},
    }


class _Clock:
    """Seconds and peak memory since the last call of `lap`: of the process, or of the GPU's allocator."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._reset()

    def lap(self) -> dict[str, float]:
        if self._cuda:
            torch.cuda.synchronize()
        seconds = round(time.perf_counter() - self._began, 2)
        peak = torch.cuda.max_memory_allocated() if self._cuda else peak_bytes()
        self._reset()
        return {"seconds": seconds, "peak_gib": round(peak / GIB, 2)}

    def _reset(self) -> None:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak()
        self._began = time.perf_counter()


def _concept(side: int) -> tuple[ConceptRecord, Photos]:
    """Return a concept of random images, in words of the random tokenizer."""
    rng = np.random.default_rng(0)
    shown, random = (tuple(Path(f"{part}/{i}.png") for i in range(PHOTOGRAPHS)) for part in ("train", "random"))
    photos = {path: rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for path in (*shown, *random)}
    asked = (f"w1 {NAME} w2 w3 w4 ?",)
    return ConceptRecord(Concept("object", "w9", NAME), Path(), train=shown, random=random, recognition=asked), photos


def _random_rows(count: int, width: int) -> Rows:
    generator = torch.Generator().manual_seed(1)
    return Rows(
        *(0.02 * torch.randn(shape, generator=generator) for shape in ((count, width), (count, width), (count,)))
    )


def _settings(folder: Path, options: argparse.Namespace) -> PersonalizeSettings:
    """Return the defaults, which are the paper's, with the batches of the options."""
    sizes: dict[str, dict[str, int]] = {f"stage_{number}": {} for number in (1, 2, 3)}
    if options.questions is not None:
        sizes = {name: {"questions": options.questions} for name in sizes}
    if options.images is not None:
        sizes = {name: {**given, "images": options.images} for name, given in sizes.items()}
    fixed = {"data": folder, "run_dir": folder / "run", "prompt": "w1 w2 {}", "policy": {"model": "random/weights"}}
    return PersonalizeSettings.model_validate({**fixed, **sizes})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.personal_real_size",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_policy_options(parser)
    parser.add_argument("--questions", type=int, help="questions of a batch (default: 4, 1 and 1, the paper's)")
    parser.add_argument("--images", type=int, help="images of a batch of stages 2 and 3 (default: 1)")
    parser.add_argument("--tiny", action="store_true", help="a tiny policy: whether the script runs")
    parser.add_argument("--out", type=Path, help="a JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
