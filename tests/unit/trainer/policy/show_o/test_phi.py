"""The decoder: keys, cache and head columns. tests/numerics compares it with transformers."""

from __future__ import annotations

import pytest
import torch

from trainer.policy.show_o.phi import Cache, PhiConfig
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


def test_a_fork_does_not_change_the_cache(policy: ShowO) -> None:
    phi, past = policy.phi, Cache()
    phi(torch.tensor([[1, 2, 3]]), None, past)
    before = {i: (k.clone(), v.clone()) for i, (k, v) in past.layers.items()}
    forked = past.fork(4)
    out = phi(torch.tensor([[4], [5], [4], [6]]), None, forked, 3)
    assert [k.shape for k, _ in forked.layers.values()] == [(4, 4, 4, 16)] * 2
    assert torch.equal(out[0], out[2])
    assert not torch.equal(out[0], out[1])
    for i, (k, v) in past.layers.items():
        assert torch.equal(k, before[i][0])
        assert torch.equal(v, before[i][1])
    assert [k.shape[0] for k, _ in forked.fork(-1).layers.values()] == [4, 4]
