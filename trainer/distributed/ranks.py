"""The ranks of a run on several devices, and what they exchange.

Rank r of W draws the groups r, r + W, ... of a step, so each group is drawn in the same batches as on one device, and
its random numbers do not depend on the ranks. Once a step the gradients are summed, unless the policy is split
(`trainer.distributed.sharding`). Documents travel as JSON in tensors: no pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
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
_MARK: Final = "trainer_in_step"  # attribute of an error: whether all ranks have left one block with it


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
        """Replace the gradients of trained parameters by their sums over the ranks; a rank without one adds 0.

        A parameter without a gradient on every rank keeps None, as on one device, so that an optimizer skips it. All
        memory is allocated before the first gradient is sent.
        """
        if self.world == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        found = torch.tensor([p.grad is not None for p in trained], dtype=torch.uint8, device=_device())
        dist.all_reduce(found, dist.ReduceOp.MAX)
        with self.together():
            summed = [parameter for parameter, anywhere in zip(trained, found.tolist(), strict=True) if anywhere]
            for parameter in summed:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            buckets = list(_buckets(summed))
            messages = _messages(buckets)
        for bucket, message in zip(buckets, messages, strict=True):
            parts = torch.split(message, [parameter.numel() for parameter in bucket])
            grads = [parameter.grad for parameter in bucket if parameter.grad is not None]
            for grad, part in zip(grads, parts, strict=True):
                part.view_as(grad).copy_(grad)
            dist.all_reduce(message)
            for grad, part in zip(grads, parts, strict=True):
                grad.copy_(part.view_as(grad))

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the ranks."""
        if self.world > 1:
            dist.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return any(self.gather_all(flag))

    def gather_all(self, document: Any) -> list[Any]:
        """Return the document of every rank, by rank."""
        if self.world == 1:
            return [document]
        return [json.loads(part) for part in self._gather_bytes(json.dumps(document).encode())]

    @contextmanager
    def saving(self, save: Callable[[], None]) -> Iterator[None]:
        """Call `save`, which may exchange something, if the block fails on all ranks: after another failure they end.

        On one rank it is called unless a block of `together` was left with what may not be saved.
        """
        try:
            yield
        except Exception as error:
            if is_agreed(error, otherwise=self.world == 1):
                save()
            raise

    @contextmanager
    def together(self, phase: str = "ranks", *, undone: bool = True) -> Iterator[None]:
        """If the block fails on one rank, all ranks leave it with an error (`is_agreed`).

        The wait for the others is in the `phase` of the clock: another than "ranks" where rank 0 alone has work to do.

        A failed rank raises its own error, the others raise OtherRankFailed with its message (SettingsError if it is
        one: bad input is bad on every rank). Every rank must enter the block, and the block must not send anything: the
        others would wait for it. `undone` False: what the block changed is not to be saved if it fails on any rank.
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
            raise _marked(error, undone)
        for rank, found in enumerate(everywhere):
            if found:
                kind = SettingsError if found[1] else OtherRankFailed
                raise _marked(kind(f"rank {rank} failed: {found[0]}"), undone)

    def check_equal(self, value: Any, what: str) -> None:
        """Raise SettingsError on every rank unless all have the same value; `what` says what it is, and what to do."""
        values = self.gather_all(value)
        if any(other != values[0] for other in values):
            raise _marked(
                SettingsError(f"the ranks have different values ({', '.join(map(str, values))}) for the {what}")
            )

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


def is_agreed(error: BaseException | None, otherwise: bool = False) -> bool:
    """Return whether all ranks have left a block of `together` with this error, or with what it was raised from.

    Only then may a rank exchange anything again, such as the parts of a checkpoint. After another failure the others
    wait in an exchange that this rank has not reached, so it must end. `otherwise` is for errors from outside a block.
    """
    while error is not None:
        if _MARK in vars(error):
            return bool(vars(error)[_MARK])
        error = error.__cause__
    return otherwise


def _marked(error: Exception, agreed: bool = True) -> Exception:
    vars(error)[_MARK] = agreed
    return error


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
    yield Ranks(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()  # not after an error: the others may be in an exchange, and nccl would wait for them


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


def _messages(buckets: Sequence[Sequence[nn.Parameter]]) -> list[Tensor]:
    """Return memory for each bucket's message; buckets of one dtype and device share it, because they take turns."""
    sizes = [sum(parameter.numel() for parameter in bucket) for bucket in buckets]
    kinds = [(bucket[0].dtype, bucket[0].device) for bucket in buckets]
    shared = {
        kind: torch.empty(
            max(size for size, one in zip(sizes, kinds, strict=True) if one == kind), dtype=kind[0], device=kind[1]
        )
        for kind in set(kinds)
    }
    return [shared[kind][:size] for size, kind in zip(sizes, kinds, strict=True)]


def _bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()
