"""Measure the peak memory of an update by its settings, and compare it with the arithmetic.

    python -m benchmarks.train_memory

Each case is a process of its own on the CPU: a random Show-o of 172 M parameters, AdamW with its moments, a frozen
reference unless there are adapters, and one update over one denoising step of G images in which every second position
is masked. The figure is the growth of the peak of resident memory from before the policy was built. Next to it stands
the trainer's own arithmetic (`trainer.memory`, an upper bound: all positions masked), and the same arithmetic for
Show-o 512 on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import command, machine
from benchmarks.memory import peak_bytes, reset_peak, resident_bytes
from benchmarks.random_show_o import FULL, TINY, build, halfway
from trainer.algorithms.losses import clipped_loss
from trainer.memory import UpdateMemory, update_memory
from trainer.policy.lora import targeted
from trainer.policy.show_o.config import ShowOConfig
from trainer.policy.show_o.memory import Dtype, activation_bytes
from trainer.policy.show_o.policy import Sampling, ShowO, Wrapped
from trainer.settings.policy import LoraSettings

ROOT = Path(__file__).resolve().parents[1]
MIDDLE = ShowOConfig(
    8_192 + 1 + 2_000, num_vq_tokens=64, max_text_length=32, llm={
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 16,
    },
)  # fmt: skip
LORA = LoraSettings()
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """Settings of an update; `micro_batch` is at most `group`."""

    group: int
    micro_batch: int
    dtype: Dtype = "float32"
    checkpointing: bool = False
    lora: bool = False


CASES = (
    Case(4, 4),
    Case(9, 9),
    Case(9, 3),
    Case(9, 1),
    Case(9, 9, checkpointing=True),
    Case(9, 3, checkpointing=True),
    Case(9, 9, "bfloat16"),
    Case(9, 3, "bfloat16", checkpointing=True),
    Case(9, 9, lora=True),
    Case(9, 3, checkpointing=True, lora=True),
    Case(9, 3, "bfloat16", checkpointing=True, lora=True),
)


def predict(config: ShowOConfig, case: Case) -> UpdateMemory:
    """Return the trainer's arithmetic for an update of a guided policy of this shape."""
    with torch.device("meta"):
        module = Wrapped(config.phi)
    size = trainable = sum(parameter.numel() for parameter in module.parameters())
    weights, half = 4 * size, case.dtype == "bfloat16"
    if case.lora:  # on layers that are stored in the dtype of the products
        layers = targeted(module, LORA.targets)
        trainable = sum(LORA.rank * (layer.in_features + layer.out_features) for layer in layers)
        weights += 4 * trainable - (2 * sum(layer.weight.numel() for layer in layers) if half else 0)
    return update_memory(
        weights,
        trainable,
        reference=not case.lora,
        activations=activation_bytes(
            config, rollouts=case.micro_batch, guided=True, checkpointing=case.checkpointing, dtype=case.dtype
        ),
        copies=2 * trainable if half else 0,
    )


def measure(case: Case) -> int:
    """Return the growth of this process's peak memory by the case, in bytes."""
    learn(TINY, case)  # loads what a first update loads, so that it does not count
    before = resident_bytes()
    learn(MIDDLE, case)
    return peak_bytes() - before


def learn(config: ShowOConfig, case: Case) -> None:
    """Build a policy, then take one update; the peak is reset between the two."""
    policy = build(config, Sampling(), dtype=case.dtype, checkpointing=case.checkpointing)
    if case.lora:
        policy.add_adapters(**LORA.model_dump(), seed=0, base="random")
    policy.keep_reference()
    trained = policy.parameter_groups()[0].parameters
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # the moments exist from here on
    optimizer.zero_grad(set_to_none=True)
    reset_peak()
    update(policy, case)
    optimizer.step()


def update(policy: ShowO, case: Case) -> None:
    """Accumulate the gradient of one denoising step of a group, as `trainer.update` does."""
    segments, advantage = halfway(policy, case.group), torch.linspace(-1, 1, case.group)
    with policy.sharing(segments):
        for first in range(0, case.group, case.micro_batch):
            chosen = slice(first, first + case.micro_batch)
            terms = policy.terms(segments[chosen], 0, reference=True)
            loss, _ = clipped_loss(
                terms.new_BD, terms.old_BD, terms.reference_BD, terms.mask_BD, advantage[chosen].to(policy.device),
                clip=0.2, beta=0.01, weight=1e-3, group_size=case.group,
            )  # fmt: skip
            loss.backward()  # type: ignore[no-untyped-call]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every case in its own process and write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/train_memory.json", help="the result (%(default)s)"
    )
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case is not None:
        print(measure(CASES[options.case]))
        return 0
    rows = []
    for number, case in enumerate(CASES):
        line = [sys.executable, "-m", "benchmarks.train_memory", "--case", str(number)]
        environ = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes back at once
        ran = subprocess.run(line, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
        if ran.returncode:
            print(f"{case}: {ran.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return 1
        rows.append(_row(case, int(ran.stdout.splitlines()[-1])))
        print(rows[-1], flush=True)
    report = {"command": command(), "machine": machine(), "parameters": _size(MIDDLE), "cases": rows}
    report["parameters_show_o_512"] = _size(FULL)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _row(case: Case, measured: int) -> dict[str, Any]:
    expected = predict(MIDDLE, case)
    return {
        **asdict(case),
        "measured_mib": round(measured / MIB),
        "arithmetic_mib": round(expected.total / MIB),
        "measured_over_arithmetic": round(measured / expected.total, 3),
        "show_o_512_gib": round(predict(FULL, case).total / 2**30, 1),
    }


def _size(config: ShowOConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Wrapped(config.phi).parameters())


if __name__ == "__main__":
    sys.exit(main())
