"""Turn a lack of memory in a step or an evaluation into an error that says what to change, and to what."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from trainer.errors import OtherRankFailed, OutOfMemory
from trainer.memory import Configuration, UpdateMemory, advice, update_memory
from trainer.policy.base import Policy
from trainer.policy.lora import targeted
from trainer.settings import TrainerSettings

CPU_MESSAGE = "can't allocate memory"  # of torch's allocator, in a plain RuntimeError


@contextmanager
def explain_out_of_memory(
    phase: Literal["drawing", "the update"], policy: Policy, settings: TrainerSettings
) -> Iterator[None]:
    """Raise OutOfMemory, with what to change, for a lack of memory inside the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = update_advice(policy, settings) if phase == "the update" else _drawing_advice(settings)
        raise OutOfMemory(
            f"out of memory in {phase} ({_first_line(error)}). {remedy}. "
            "Earlier checkpoints are intact: start the same command again"
        ) from error


@contextmanager
def explain_large_batch(batch: int, also: str = "") -> Iterator[None]:
    """Raise OutOfMemory, which advises a smaller --batch, for a lack of memory inside the block.

    `also` is what else `synod evaluate` needs with another --batch.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = f"Give --batch {batch // 2}{also}" if batch > 1 else "Use a larger device: no --batch is smaller"
        raise OutOfMemory(f"out of memory with --batch {batch} ({_first_line(error)}). {remedy}") from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a lack of memory on this rank's GPU or host; another rank's has its own advice."""
    if isinstance(error, OtherRankFailed):
        return False
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or CPU_MESSAGE in str(error)


def update_advice(policy: Policy, settings: TrainerSettings) -> str:
    """Return what an update of the policy needs, and the least change of settings that fits its device."""
    now = configuration_of(settings)
    return advice(now, lambda other: memory_of(policy, settings, other), device_bytes(policy))


def configuration_of(settings: TrainerSettings) -> Configuration:
    """Return what the settings say about the memory of an update."""
    group = settings.screen.group_size
    return Configuration(
        micro_batch=min(settings.loss.micro_batch or group, group),
        checkpointing=settings.policy.checkpointing,
        lora=settings.policy.lora is not None,
    )


def memory_of(policy: Policy, settings: TrainerSettings, configuration: Configuration) -> UpdateMemory:
    """Return the arithmetic of an update of this policy on one rank, if its settings were those of `configuration`.

    Adapters that the settings do not have yet would be those of the default settings, on layers that are stored in the
    dtype of the products.
    """
    parameters, lora = list(policy.module.parameters()), settings.policy.lora
    weights, trainable = sum(p.nbytes for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
    half = settings.policy.dtype == "bfloat16"
    if configuration.lora and lora is None:
        chosen = settings.policy.adapters
        layers = targeted(policy.module, chosen.targets)
        trainable = sum(chosen.rank * (layer.in_features + layer.out_features) for layer in layers)
        weights += 4 * trainable - (2 * sum(layer.weight.numel() for layer in layers) if half else 0)
    return update_memory(
        weights,
        trainable,
        reference=settings.needs_reference and not configuration.lora,
        activations=policy.activation_bytes(configuration.micro_batch, checkpointing=configuration.checkpointing),
        copies=2 * trainable if half else 0,
        shard=settings.ranks.shard,
        gathered=gathered_bytes(policy),
    )


def gathered_bytes(policy: Policy) -> int:
    """Return how much of a split policy is whole at a time in an update: all but the blocks, and the largest two."""
    root, blocks = policy.units()[0]
    sizes = sorted(_bytes(block) for block in blocks)
    return _bytes(root) - sum(sizes[:-2])


def _bytes(module: nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())


def device_bytes(policy: Policy) -> int:
    """Return the memory of the device that the policy is on: its GPU, else the host."""
    device = next(policy.module.parameters()).device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _drawing_advice(settings: TrainerSettings) -> str:
    images = settings.screen.preview_batch_size
    if images > 1:
        return f"Set [trainer.screen] preview_batch_size = {images // 2} (now {images}), with a new run_dir"
    return "Train on a larger device: images are drawn one at a time already"
