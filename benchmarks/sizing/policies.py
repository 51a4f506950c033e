"""Policies whose phase times follow from their arithmetic, at an assumed share of a GPU's peak."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import torch

from benchmarks.random_show_o import FULL
from benchmarks.show_o_512 import update_flops
from benchmarks.sizing.model import Policy, Screen, Work
from trainer.policy.lora import targeted
from trainer.policy.show_o.config import ShowOConfig
from trainer.policy.show_o.policy import Wrapped
from trainer.settings.policy import LoraSettings

RECORD_S: Final = 3.8  # measured: 26 images of 512 px, one core, 1.1 s for the files and 2.7 s for TensorBoard

PASSES: Final = 50  # of each denoising step one: micro_batch is the group


@dataclass(frozen=True)
class Gpu:
    """Assumed arithmetic: dense bfloat16 peak in FLOP/s, and the shares of it that drawing and the update reach."""

    peak_flops: float = 989e12  # H100, H200
    draw_share: float = 0.3
    update_share: float = 0.4


@dataclass(frozen=True)
class Case:
    """A policy whose phase times follow from its arithmetic."""

    name: str
    work: Work
    policy: Policy
    screen: Screen = field(default_factory=Screen)


def arithmetic(
    config: ShowOConfig, gpu: Gpu, screen: Screen, *, lora: bool, steps: int = 50, fraction: float = 0.2
) -> Work:
    """Return the work of a guided Show-o of this shape, drawn in `steps` steps and screened after `fraction` of them.

    Counted are the multiplications and additions of `benchmarks.show_o_512.update_flops`: one forward pass an image
    and step, two by guidance. An update reads all steps of a group: forward, reference, the blocks again
    (checkpointing), and backward, which takes two forward passes, one if weights are frozen. Not counted: text that
    the policy writes, decoding, the optimizer.
    """

    def forward(images: int, count: int) -> float:
        masked = images * count * config.num_vq_tokens  # at most
        return update_flops(config, images, count, masked, reference=False) / 3

    screened = round(fraction * steps)
    drawing, learning = gpu.peak_flops * gpu.draw_share, gpu.peak_flops * gpu.update_share
    return Work(
        preview_s=forward(screen.batch, screened) / screen.batch / drawing,
        finish_s=forward(screen.group, steps - screened) / drawing,
        update_s=forward(screen.group, steps) * (3 + (1 if lora else 2)) / learning,
        record_s=RECORD_S,
    )


def cases(gpu: Gpu = Gpu()) -> list[Case]:
    """Return Show-o 512 and the same model at 7 B parameters, with adapters and with all weights."""
    screen = Screen()
    phi = {"hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32, "num_attention_heads": 32}
    small, large = _sizes(FULL), _sizes(wide := replace(FULL, llm=phi))
    found = (
        ("Show-o 512 (1.45 B), LoRA", FULL, Policy(small[0], small[1], passes=PASSES)),
        ("Show-o 512 (1.45 B), all weights", FULL, Policy(small[0], small[0], passes=PASSES)),
        ("7 B, LoRA", wide, Policy(large[0], large[1], passes=PASSES)),
        ("7 B, all weights", wide, Policy(large[0], large[0], shard=8, passes=PASSES)),
    )
    return [
        Case(name, arithmetic(config, gpu, screen, lora=policy.trained < policy.parameters), policy, screen)
        for name, config, policy in found
    ]


def _sizes(config: ShowOConfig) -> tuple[int, int]:
    """Return the parameters of a Show-o, and those of its default adapters."""
    lora = LoraSettings()
    with torch.device("meta"):
        module = Wrapped(config.phi)
    layers = targeted(module, lora.targets)
    adapters = sum(lora.rank * (layer.in_features + layer.out_features) for layer in layers)
    return sum(parameter.numel() for parameter in module.parameters()), adapters
