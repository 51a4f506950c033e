"""The activations of a flow-matching transformer in an update, counted on tensors without memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer.policy.flow.attention import use_float32_sums

Dtype = Literal["float32", "bfloat16"]


def activation_bytes(
    transformer: str,
    config: Mapping[str, Any],
    latent: tuple[int, int, int],
    conditions: Mapping[str, Tensor],
    *,
    rollouts: int,
    branches: int,
    checkpointing: bool,
    dtype: Dtype = "float32",
) -> int:
    """Return the bytes that one sampling step of `rollouts` images keeps for its backward pass.

    They grow in a line with the number of rollouts, so two and one are compared: what does not depend on it, such as
    weights in autocast's dtype, is not counted. With `checkpointing` each block keeps its inputs, and one block at a
    time has all of its activations. All weights are trained: adapters keep a little less.

    branches             rows of its batch for one image: with guidance, those without and with the prompt
    transformer, config  its class in diffusers and its configuration
    latent               channels, height and width
    conditions           its arguments for one prompt, of which shape and dtype are read
    """
    one, two = (_counted(transformer, config, latent, conditions, n * branches, dtype) for n in (1, 2))
    (kept, inputs, blocks), (more, more_inputs, _) = one, two
    if checkpointing:
        return rollouts * (more_inputs - inputs + (more - kept) // blocks)
    return rollouts * (more - kept)


def _counted(
    transformer: str,
    config: Mapping[str, Any],
    latent: tuple[int, int, int],
    conditions: Mapping[str, Tensor],
    rows: int,
    dtype: Dtype,
) -> tuple[int, int, int]:
    """Return (bytes kept for the backward pass, bytes of the blocks' inputs, number of blocks) of a forward pass."""
    import diffusers

    with FakeTensorMode():
        module = getattr(diffusers, transformer).from_config(dict(config)).eval()
        blocks: nn.ModuleList = module.transformer_blocks
        inputs, kept = _Storages(), _Storages()
        for parameter in module.parameters():
            kept.ignore(parameter)
        if transformer == "SanaTransformer2DModel" and dtype == "bfloat16":
            use_float32_sums(module)
        for block in blocks:
            block.register_forward_pre_hook(inputs.add_all, with_kwargs=True)
        given = {name: torch.zeros(rows, *one.shape[1:], dtype=one.dtype) for name, one in conditions.items()}
        arguments = {"hidden_states": torch.zeros(rows, *latent), "timestep": torch.zeros(rows), **given}
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
        with autocast, torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
            module(**arguments, return_dict=False)
    return kept.size, inputs.size, len(blocks)


class _Storages:
    """Memory of tensors, each piece counted once; it holds them, so that none is used again."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Tensor, int]] = {}

    def add(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            self._held.setdefault(storage._cdata, (value, storage.nbytes()))
        return value

    def add_all(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for one in (*args, *kwargs.values()):
            self.add(one)

    def ignore(self, tensor: Tensor) -> None:
        self._held[tensor.untyped_storage()._cdata] = (tensor, 0)

    @property
    def size(self) -> int:
        return sum(size for _, size in self._held.values())
