"""The arithmetic of activations against the tensors that autograd keeps."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.trainer.tiny_show_o import LIMIT, SHAPE
from trainer.policy.show_o.config import ShowOConfig
from trainer.policy.show_o.memory import activation_bytes
from trainer.policy.show_o.policy import ShowO

PROMPTS = ["cat " * LIMIT, "a photo of a red cat", "dog " * LIMIT, "a hat"]
FULL = ShowOConfig(58_498)  # the published one: 512 px, Phi-1.5


def kept(policy: ShowO, uniforms: Callable[..., Tensor], rollouts: int) -> int:
    """Return the bytes of all tensors, but the parameters, that live between the two passes of the second step."""
    segments = policy.denoise(policy.begin(PROMPTS[:rollouts], uniforms(rollouts, 3, 2, 16)), 3)
    found: dict[int, int] = {}
    before = {id(one) for one in gc.get_objects() if issubclass(type(one), Tensor)}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = policy.logprobs(segments, 1)  # in the first, rows without a prompt are equal and read once
    for one in gc.get_objects():  # checkpointing keeps its inputs elsewhere
        if issubclass(type(one), Tensor) and id(one) not in before and one.dtype != torch.uint8:  # no RNG state
            pack(one)
    own = {parameter.untyped_storage().data_ptr() for parameter in policy.module.parameters()}
    assert out[0].requires_grad
    return sum(size for place, size in found.items() if place not in own)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("rollouts", [2, 4])
def test_activations_are_those_that_autograd_keeps(
    make_policy: Callable[..., ShowO], uniforms: Callable[..., Tensor], guided: bool, rollouts: int
) -> None:
    policy = make_policy(guidance_scale=2.0 if guided else 0.0)
    estimate = activation_bytes(policy.config, rollouts=rollouts, guided=guided, checkpointing=False)
    assert estimate == pytest.approx(kept(policy, uniforms, rollouts), rel=0.1)


def test_checkpointing_keeps_each_blocks_input(
    make_policy: Callable[..., ShowO], uniforms: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What three more blocks add, so that the one block that is computed again does not count."""
    measured, estimates = [], []
    for layers in (1, 4):
        monkeypatch.setitem(SHAPE, "num_hidden_layers", layers)
        policy = make_policy()
        policy.phi.checkpointing = True
        measured.append(kept(policy, uniforms, 4))
        estimates.append(activation_bytes(policy.config, rollouts=4, guided=True, checkpointing=True))
    assert estimates[1] - estimates[0] == pytest.approx(measured[1] - measured[0], rel=0.1)


def test_one_block_is_computed_again_at_a_time() -> None:
    def of(layers: int, *, checkpointing: bool) -> int:
        config = replace(FULL, llm={"num_hidden_layers": layers})
        return activation_bytes(config, rollouts=2, guided=True, checkpointing=checkpointing)

    one_block = of(1, checkpointing=False) - of(0, checkpointing=False)
    assert of(0, checkpointing=True) == of(0, checkpointing=False) + one_block
    assert of(24, checkpointing=True) < of(0, checkpointing=False) + 4 * one_block


def test_show_o_512_takes_what_was_worked_by_hand() -> None:
    """Nine rollouts, two passes of 1,026 image tokens, 24 blocks of 17 widths of 2,048; and texts and head."""
    images = 9 * 2 * 1026 * 24 * 17 * 2048 * 4
    assert images / 2**30 == pytest.approx(57.5, abs=0.1)
    found = activation_bytes(FULL, rollouts=9, guided=True, checkpointing=False)
    assert 1.05 * images < found < 1.15 * images


def test_bfloat16_halves_what_the_products_keep() -> None:
    """Of 68 bytes a width: 3 of 9 stay float32."""
    single = activation_bytes(FULL, rollouts=9, guided=True, checkpointing=False)
    half = activation_bytes(FULL, rollouts=9, guided=True, checkpointing=False, dtype="bfloat16")
    assert half / single == pytest.approx((3 * 4 + 6 * 2 + 8 * 2) / 68, abs=0.02)
