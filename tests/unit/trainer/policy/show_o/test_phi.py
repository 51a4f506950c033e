"""The decoder: keys, cache and head columns. tests/numerics compares it with transformers."""

from __future__ import annotations

import pytest
import torch

from trainer.policy.show_o.phi import PhiConfig
from trainer.policy.show_o.policy import ShowO, Wrapped

LAYER = [
    *(f"{norm}.{part}" for norm in ("input_layernorm",) for part in ("weight", "bias")),
    *(f"self_attn.{name}.{part}" for name in ("q_proj", "k_proj", "v_proj", "dense") for part in ("weight", "bias")),
    *(f"self_attn.{name}.{part}" for name in ("q_layernorm", "k_layernorm") for part in ("weight", "bias")),
    *(f"mlp.{name}.{part}" for name in ("fc1", "fc2") for part in ("weight", "bias")),
]


def test_keys_and_size_of_the_public_model() -> None:
    with torch.device("meta"):
        state = Wrapped(PhiConfig(58_498)).state_dict()
    expected = {f"showo.model.layers.{i}.{key}" for i in range(24) for key in LAYER}
    expected |= {"showo.model.embed_tokens.weight", "showo.lm_head.weight", "showo.lm_head.bias"}
    expected |= {"showo.model.final_layernorm.weight", "showo.model.final_layernorm.bias"}
    assert set(state) == expected
    shapes = {
        "showo.model.embed_tokens.weight": (58_498, 2048),
        "showo.lm_head.bias": (58_498,),
        "showo.model.layers.23.mlp.fc1.weight": (8192, 2048),
        "showo.model.layers.0.self_attn.q_layernorm.weight": (64,),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    assert sum(v.numel() for v in state.values()) == pytest.approx(1.45e9, rel=0.005)


def test_reading_a_cache_does_not_change_it(policy: ShowO) -> None:
    phi = policy.phi
    _, past = phi.encode(torch.tensor([[1, 2, 3]]), None)
    before = [(k.clone(), v.clone()) for k, v in past.layers]
    expanded = past.expand(4)
    out, fresh = phi.encode(torch.tensor([[4], [5], [4], [6]]), None, expanded, 3)
    assert [k.shape for k, _ in fresh.layers] == [(4, 4, 1, 16)] * 2
    assert [k.shape for k, _ in expanded.followed_by(fresh).layers] == [(4, 4, 4, 16)] * 2
    assert torch.equal(out, phi(torch.tensor([[4], [5], [4], [6]]), None, expanded, 3))
    assert torch.equal(out[0], out[2])
    assert not torch.equal(out[0], out[1])
    for (k, v), (old_k, old_v) in zip(past.layers, before, strict=True):
        assert torch.equal(k, old_k)
        assert torch.equal(v, old_v)


def test_a_cache_in_two_parts_equals_one_sequence(policy: ShowO) -> None:
    phi = policy.phi.double()
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    _, first = phi.encode(ids[:, :2], causal[..., :2, :2])
    _, second = phi.encode(ids[:, 2:5], causal[..., 2:5, :5], first, 2)
    found, last = phi.encode(ids[:, 5:], causal[..., 5:, :], first.followed_by(second), 5)
    whole, cache = phi.encode(ids, causal)
    torch.testing.assert_close(found[:, 0], whole[:, 5], atol=1e-12, rtol=0)
    joined = first.followed_by(second).followed_by(last)
    for (k, v), (whole_k, whole_v) in zip(joined.layers, cache.layers, strict=True):
        torch.testing.assert_close(k, whole_k, atol=1e-12, rtol=0)
        torch.testing.assert_close(v, whole_v, atol=1e-12, rtol=0)


def saved_bytes(policy: ShowO, weight: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Bytes that the graph of a prefix and its continuation keeps (but for inputs of checkpoints), and its gradient."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.arange(40).view(2, 20)
    causal = torch.ones(20, 20, dtype=torch.bool).tril()[None, None]
    policy.module.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _, past = policy.phi.encode(ids[:, :8], causal[..., :8, :8])
        hidden = policy.phi(ids[:, 8:], causal[..., 8:, :], past, 8)
    (hidden * weight).sum().backward()  # type: ignore[no-untyped-call]
    grads = [p.grad for p in policy.module.parameters() if p.grad is not None]
    return sum(kept.values()), torch.cat([grad.flatten() for grad in grads])


def test_checkpointing_keeps_less_and_gives_equal_gradients(policy: ShowO) -> None:
    weight = torch.randn(2, 12, 64, generator=torch.Generator().manual_seed(0))
    everything, expected = saved_bytes(policy, weight)
    policy.phi.checkpointing = True
    less, found = saved_bytes(policy, weight)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert less < everything / 4


@pytest.mark.parametrize("index", [[0, 1, 2], [2, 1, 0], [1], [0, 0, 2, 1]])
def test_rows_of_a_cache(policy: ShowO, index: list[int]) -> None:
    _, cache = policy.phi.encode(torch.arange(6).view(3, 2), None)
    for (key, value), (all_keys, all_values) in zip(cache.rows(index).layers, cache.layers, strict=True):
        assert torch.equal(key, all_keys[index])
        assert torch.equal(value, all_values[index])
    _, one = policy.phi.encode(torch.arange(2).view(1, 2), None)
    assert all(
        torch.equal(k, one.layers[i][0].expand(3, -1, -1, -1)) for i, (k, _) in enumerate(one.rows([0] * 3).layers)
    )


def test_leaves_add_up_gradients_in_float32(policy: ShowO) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        _, cache = policy.phi.encode(torch.arange(6).view(3, 2), None)
    for layer, leaves in zip(cache.layers, cache.leaves().layers, strict=True):
        for tensor, leaf in zip(layer, leaves, strict=True):
            assert (tensor.dtype, leaf.dtype) == (torch.bfloat16, torch.float32)
            assert leaf.is_leaf
            assert leaf.requires_grad
            assert torch.equal(leaf.to(tensor.dtype), tensor)
