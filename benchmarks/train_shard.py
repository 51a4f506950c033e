"""Measure an update of a policy that FSDP2 manages, against one of a whole policy, with one process.

    python -m benchmarks.train_shard                    # a random Show-o of 172 M parameters
    python -m benchmarks.train_shard --size full        # Show-o 512 (a GPU of 80 GB)

One rank has all parts, so nothing is saved: the figures are what FSDP2 costs, the memory of gathered blocks and of
buffers, and the time of its hooks and copies. They say nothing about traffic between devices, which needs several. Each
case is a process of its own: a frozen reference, AdamW with its moments, then updates over one denoising step of G
images. On a GPU (nccl) the memory is the peak that torch allocated, else (gloo) the growth of the resident peak.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.machine import command, machine
from benchmarks.memory import peak_bytes, reset_peak, resident_bytes
from benchmarks.random_show_o import FULL, TINY, build, halfway
from benchmarks.train_memory import MIDDLE
from trainer.algorithms.losses import clipped_loss
from trainer.distributed import WHOLE, Ranks, Sharding, shard
from trainer.policy.show_o.policy import Sampling, ShowO

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"tiny": TINY, "middle": MIDDLE, "full": FULL}
MODES = ("whole", "split")


def measure(size: str, mode: str, group: int, micro_batch: int, repeats: int) -> dict[str, Any]:
    """Return the peak of memory and the seconds of an update, of this process."""
    device, before = ("cuda" if torch.cuda.is_available() else "cpu"), resident_bytes()
    policy = build(SIZES[size], Sampling(), device=device, checkpointing=True)
    policy.keep_reference()
    sharding = shard(policy.units(), Ranks(), 1) if mode == "split" else WHOLE
    optimizer = torch.optim.AdamW(policy.parameter_groups()[0].parameters, lr=1e-6)
    sharding.refresh()
    segments = halfway(policy, group)
    update(policy, optimizer, sharding, segments, micro_batch)  # the moments exist from here on
    seconds = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()
    for _ in range(repeats):
        begun = perf_counter()
        update(policy, optimizer, sharding, segments, micro_batch)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(perf_counter() - begun)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes() - before
    return {"mode": mode, "device": device, "peak_mib": round(peak / 2**20), "update_s": round(min(seconds), 3)}


def update(
    policy: ShowO, optimizer: torch.optim.Optimizer, sharding: Sharding, segments: Sequence[Any], micro_batch: int
) -> None:
    """Take one update as `trainer.update` does for a split policy, that is without `sharing`."""
    optimizer.zero_grad(set_to_none=True)
    advantage = torch.linspace(-1, 1, len(segments), device=policy.device)
    with sharding.split():
        for first in range(0, len(segments), micro_batch):
            chosen = slice(first, first + micro_batch)
            terms = policy.terms(segments[chosen], 0, reference=True)
            loss, _ = clipped_loss(
                terms.new_BD, terms.old_BD, terms.reference_BD, terms.mask_BD, advantage[chosen],
                clip=0.2, beta=0.01, weight=1e-3, group_size=len(segments),
            )  # fmt: skip
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both modes in their own processes and write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_shard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--size",
        choices=tuple(SIZES),
        default="middle",
        help="the random policy: 172 M parameters, or Show-o 512 (middle)",
    )
    parser.add_argument("--group", type=int, default=9, help="G, the images of the update")
    parser.add_argument("--micro-batch", type=int, default=3, help="images of one pass")
    parser.add_argument("--repeats", type=int, default=3, help="updates; the fastest counts")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/train_shard.json", help="the result (%(default)s)"
    )
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.mode is not None:
        with tempfile.TemporaryDirectory() as folder:
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
            print(json.dumps(measure(options.size, options.mode, options.group, options.micro_batch, options.repeats)))
            dist.destroy_process_group()
        return 0
    given = list(arguments if arguments is not None else sys.argv[1:])
    rows = []
    for mode in MODES:
        line = [sys.executable, "-m", "benchmarks.train_shard", *given, "--mode", mode]
        environ = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes back at once
        ran = subprocess.run(line, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
        if ran.returncode:
            print(f"{mode}: {ran.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return 1
        rows.append(json.loads(ran.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    report = {"command": command(), "machine": machine(), "size": options.size, "group": options.group}
    options.out.write_text(json.dumps({**report, "micro_batch": options.micro_batch, "cases": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
