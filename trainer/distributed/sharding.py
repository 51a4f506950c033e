"""A policy split over ranks by FSDP2 (`fully_shard`), for policies that do not fit one device with their optimizer.

Parameters, gradients and optimizer state are split within each unit: the root, and each of its blocks. Outside of an
update every rank has gathered the trained parameters, so drawing, evaluating and saving exchange nothing and may differ
between ranks. Inside `Sharding.split` a rank holds its parts alone, and a unit is gathered while it computes. There,
all ranks must make the same calls in the same order: a rank that left one out would wait for the others for ever.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.distributed.ranks import Ranks, is_agreed

Units = tuple[nn.Module, Sequence[nn.Module]]  # a model that is called as a whole, and its blocks in order


class Sharding:
    """How a policy is split; without models it is not, and nothing here has an effect.

    `models` were split by `shard`: the trained one first, then frozen ones, which are whole at no time.
    """

    def __init__(self, models: Sequence[Units] = ()) -> None:
        self._models = models
        self._called = set[nn.Module]()
        for root, _ in models:
            root.register_forward_hook(lambda module, *_: self._called.add(module))

    @property
    def is_on(self) -> bool:
        return bool(self._models)

    @contextmanager
    def split(self) -> Iterator[None]:
        """Inside the block each rank holds its parts of the parameters, which an optimizer may change.

        After an error that the others may not have it stays split: the ranks are no longer in step (`is_agreed`), so
        nothing can be gathered.
        """
        for root, blocks in self._models:
            if root in self._called:
                cast(FSDPModule, root).reset_iter_state()  # forget how often this rank has called it
            for unit in (root, *blocks):
                cast(FSDPModule, unit).reshard()
        self._keep_gathered(False)
        try:
            yield
        except Exception as error:
            if is_agreed(error):
                self.refresh()
            raise
        self.refresh()

    def refresh(self) -> None:
        """Gather the trained parameters; on every rank, after something has changed the parts."""
        self._keep_gathered(True)
        for root, blocks in self._models[:1]:
            for unit in (root, *blocks):
                cast(FSDPModule, unit).reshard()
                cast(FSDPModule, unit).unshard()

    def exchange_replicas(self, flag: bool) -> None:
        """Say whether the next backward pass ends with the exchange of gradients between replicas of the policy.

        Until then each replica adds up its own, and no parameter has a gradient. With one replica nothing changes.
        """
        for root, _ in self._models[:1]:
            cast(FSDPModule, root).set_requires_all_reduce(flag)

    def _keep_gathered(self, flag: bool) -> None:
        for _, blocks in self._models[:1]:
            for block in blocks:
                cast(FSDPModule, block).set_reshard_after_forward(not flag, recurse=False)


WHOLE: Final = Sharding()


def shard(models: Sequence[Units], ranks: Ranks, count: int) -> Sharding:
    """Split each model over `count` ranks, which divides the number of ranks; groups of `count` have equal parts.

    The models are on their device, and must not be copied any more. Until `refresh` is called, only parts exist.
    """
    device = next(models[0][0].parameters()).device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if count == ranks.world:
        mesh = init_device_mesh(device.type, (count,), mesh_dim_names=("shard",))
    else:
        mesh = init_device_mesh(device.type, (ranks.world // count, count), mesh_dim_names=("replica", "shard"))
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # nothing changes it in place
    for root, blocks in models:
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(root, mesh=mesh, reshard_after_forward=False)
    return Sharding(models)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a split tensor, in the same memory; another tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tree: Any, *, keep: bool = True) -> Any:
    """Return a tree of dicts, lists and tuples with split tensors gathered, on the CPU; call it on every rank.

    Without `keep` they are None: the rank only takes part. Tensors are gathered one at a time.
    """
    if isinstance(tree, DTensor):
        full = cast(DTensor, tree.detach()).full_tensor()
        return full.cpu() if keep else None
    if isinstance(tree, Mapping):
        return {key: whole(value, keep=keep) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(whole(value, keep=keep) for value in tree)
    return tree


def part(full: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor, known to every rank, split as `like` is; no rank sends anything."""
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
