"""The arithmetic of an update's memory, and what to change when it does not fit. All sizes are in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

USABLE = 0.9  # of a device: the rest is fragments, buffers and other programs
RELIEF = 0.75  # of an update that did not fit, whatever the arithmetic says about it
GIB = 2**30


@dataclass(frozen=True)
class Configuration:
    """What decides the memory of an update of a given policy. `micro_batch` is a number of rollouts."""

    micro_batch: int
    checkpointing: bool
    lora: bool


@dataclass(frozen=True)
class UpdateMemory:
    """The largest parts of an update's memory at its peak."""

    weights: int
    reference: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.reference + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = {name: getattr(self, name) / GIB for name in self.__dataclass_fields__ if getattr(self, name)}
        return ", ".join(f"{name} {value:.3g}" for name, value in parts.items())


def update_memory(
    weights: int,
    trainable: int,
    *,
    reference: bool,
    activations: int,
    copies: int = 0,
    shard: int = 1,
    gathered: int = 0,
) -> UpdateMemory:
    """Return the memory of an update on one rank.

    `weights` bytes of parameters, `trainable` of them (a number, in float32) with a gradient and AdamW's two moments.
    A frozen `reference` is a second copy of the weights; adapters need none. `copies` bytes are the weights in the
    dtype of the matrix products, which autocast keeps in addition to the float32 ones. A policy that is split over
    `shard` ranks has `gathered` bytes of weights whole at a time, and the gradients of as many; copies are whole.
    """
    if shard == 1:
        gathered = 0
    return UpdateMemory(
        weights=weights // shard + gathered + copies,
        reference=weights // shard + gathered if reference else 0,
        gradients=4 * trainable // shard + min(gathered, 4 * trainable),
        optimizer=8 * trainable // shard,
        activations=activations,
    )


def smaller(now: Configuration) -> Iterator[Configuration]:
    """Yield configurations that need less memory than `now`, those that cost least first.

    Smaller micro-batches cost some speed, checkpointing a second forward pass; adapters train another policy.
    """
    for lora in sorted({now.lora, True}):
        for checkpointing in sorted({now.checkpointing, True}):
            for micro_batch in range(now.micro_batch, 0, -1):
                if (one := Configuration(micro_batch, checkpointing, lora)) != now:
                    yield one


def advice(now: Configuration, memory: Callable[[Configuration], UpdateMemory], limit: int) -> str:
    """Return what an update needs, and the first smaller configuration that fits a device of `limit` bytes.

    `memory` is the arithmetic of the policy. If nothing fits, the smallest configuration is named with its size.
    """
    needed = memory(now)
    budget = min(USABLE * limit, RELIEF * needed.total)
    options = list(smaller(now))
    chosen = next((one for one in options if memory(one).total <= budget), None)
    text = (
        f"An update takes about {needed.total / GIB:.3g} GiB ({needed}; {now.micro_batch} rollouts in a pass), and the "
        f"device has {limit / GIB:.3g} GiB. "
    )
    if chosen is not None:
        return f"{text}Set {_changes(now, chosen)}: about {memory(chosen).total / GIB:.3g} GiB"
    least = min([*options, now], key=lambda one: memory(one).total)
    how = f", even with {_changes(now, least)}" if least != now else ""
    return (
        f"{text}Train on a larger device, or split the policy over more ([trainer.ranks] shard): it takes about "
        f"{memory(least).total / GIB:.3g} GiB{how}"
    )


def _changes(now: Configuration, then: Configuration) -> str:
    changes = []
    if then.micro_batch != now.micro_batch:
        changes.append(f"[trainer.loss] micro_batch = {then.micro_batch} (now {now.micro_batch})")
    if then.checkpointing != now.checkpointing:
        changes.append("[trainer.policy] checkpointing = true")
    if then.lora != now.lora:
        changes.append("[trainer.policy.lora] (with a new run_dir)")
    return ", ".join(changes)
