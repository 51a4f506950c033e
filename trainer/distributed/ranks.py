"""The ranks of a run on several devices, and what they exchange.

Rank r of W draws the groups r, r + W, ... of a step, so each group is drawn in the same batches as on one device, and
its random numbers do not depend on the ranks. Once a step the gradients are summed, unless the policy is split
(`trainer.distributed.sharding`). Documents travel as JSON in tensors: no pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from synod.errors import SettingsError
from trainer.clock import Clock
from trainer.errors import OtherRankFailed

PATIENCE: Final = timedelta(hours=12)  # a rank may wait for an unavailable service while the others wait for it
BUCKET_BYTES: Final = 64 * 2**20  # gradients are summed in messages of this size


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's number among all that train one policy; one process is rank 0 of 1 and sends nothing.

    `clock` measures the phases of training; what this rank waits in `together` after its own work is in "ranks".
    """

    rank: int = 0
    world: int = 1
    clock: Clock = field(default_factory=Clock, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the run's files."""
        return self.rank == 0

    def mine(self, count: int) -> range:
        """Return which of `count` groups this rank draws."""
        return range(self.rank, count, self.world)

    def gather(self, documents: Sequence[Any]) -> list[Any]:
        """Return the documents of all ranks in the order of the groups, each a JSON value; the same on every rank.

        `documents` are those of `mine(count)`. Floats arrive bit for bit.
        """
        parts = self.gather_all(list(documents))
        return [parts[i % self.world][i // self.world] for i in range(sum(map(len, parts)))]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every parameter's gradient by its sum over the ranks; a rank without a gradient adds 0."""
        if self.world == 1:
            return
        for bucket in _buckets(list(parameters)):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(flat)
            for parameter, part in zip(bucket, torch.split(flat, [p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return any(self.gather_all(flag))

    def gather_all(self, document: Any) -> list[Any]:
        """Return the document of every rank, by rank."""
        if self.world == 1:
            return [document]
        return [json.loads(part) for part in self._gather_bytes(json.dumps(document).encode())]

    @contextmanager
    def together(self, phase: str = "ranks") -> Iterator[None]:
        """If the block fails on one rank, all ranks leave it with an error.

        The wait for the others is in the `phase` of the clock: another than "ranks" where rank 0 alone has work to do.

        A failed rank raises its own error, the others raise OtherRankFailed with its message (SettingsError if it is
        one: bad input is bad on every rank). Every rank must enter the block, and the block must not send anything: the
        others would wait for it.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        failed = [] if error is None else [f"{type(error).__name__}: {error}", isinstance(error, SettingsError)]
        with self.clock(phase) if self.world > 1 else nullcontext():
            everywhere = self.gather_all(failed)
        if error is not None:
            raise error
        for rank, found in enumerate(everywhere):
            if found:
                kind = SettingsError if found[1] else OtherRankFailed
                raise kind(f"rank {rank} failed: {found[0]}")

    def check_equal(self, value: Any, what: str) -> None:
        """Raise SettingsError on every rank unless all have the same value; `what` says what it is, and what to do."""
        values = self.gather_all(value)
        if any(other != values[0] for other in values):
            raise SettingsError(f"the ranks differ: {', '.join(map(str, values))} as the {what}")

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        device = _device()
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(data)], device=device))
        longest = max(int(size) for size in sizes)
        own = torch.zeros(longest, dtype=torch.uint8, device=device)
        own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(parts, own)
        return [bytes(part[: int(size)].cpu().numpy()) for part, size in zip(parts, sizes, strict=True)]


ONE_RANK: Final = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes of a launcher that set RANK and WORLD_SIZE (torchrun, Ray Train), and leave them again.

    Without a launcher this is one process.
    """
    if dist.is_available() and dist.is_initialized():  # Ray Train has joined already
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ONE_RANK
        return
    _join()
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _join() -> None:
    """Join the other processes by nccl if all have a GPU, else by gloo: with different backends they would hang."""
    store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
    store.set(f"has_gpu/{rank}", str(torch.cuda.is_available()))
    have_gpu = all(store.get(f"has_gpu/{other}") == b"True" for other in range(world))
    backend = "nccl" if have_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)


def device() -> torch.device:
    """Return this rank's device: the GPU that the launcher assigned, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _device() -> torch.device:
    return device() if dist.get_backend() == "nccl" else torch.device("cpu")


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield parameters in order, in lists of one dtype and device of about BUCKET_BYTES."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        same = bucket and (parameter.dtype, parameter.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (not same or sum(_bytes(p) for p in bucket) + _bytes(parameter) > BUCKET_BYTES):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def _bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()
