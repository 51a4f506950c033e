"""The learned queries and the connector behind a language model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from synod.errors import SettingsError
from trainer.policy.flow import connector
from trainer.policy.flow.connector import Connector, ConnectorConfig

CONFIG = ConnectorConfig(queries=3, width=16, caption_width=10, layers=2, heads=4, kv_heads=2)


@pytest.fixture
def made() -> Connector:
    torch.manual_seed(0)
    return Connector(CONFIG)


def naive(one: Connector, x_QW: Tensor) -> Tensor:
    """The captions [Q C] of one prompt, a query and a head at a time."""

    def normed(x: Tensor, norm: torch.nn.RMSNorm) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight

    def rotated(x: Tensor, position: int) -> Tensor:
        turned = x.clone()
        for i in range(2):  # pairs (0, 2) and (1, 3)
            angle = position * 10_000.0 ** (-2 * i / 4)
            turned[i] = x[i] * math.cos(angle) - x[i + 2] * math.sin(angle)
            turned[i + 2] = x[i + 2] * math.cos(angle) + x[i] * math.sin(angle)
        return turned

    for layer in one.layers:
        y = normed(x_QW, layer.attention_norm)
        q, k, v = (y @ proj.weight.T for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
        mixed = torch.zeros_like(x_QW)
        for head in range(4):
            own, shared = slice(4 * head, 4 * head + 4), slice(4 * (head // 2), 4 * (head // 2) + 4)
            for at in range(3):
                scores = [rotated(q[at, own], at) @ rotated(k[other, shared], other) / 2 for other in range(3)]
                weights = torch.stack(scores).softmax(0)
                mixed[at, own] = sum(weights[other] * v[other, shared] for other in range(3))
        x_QW = x_QW + mixed @ layer.o_proj.weight.T
        y = normed(x_QW, layer.mlp_norm)
        gate = y @ layer.gate_proj.weight.T
        x_QW = x_QW + (gate * gate.sigmoid() * (y @ layer.up_proj.weight.T)) @ layer.down_proj.weight.T
    return normed(x_QW, one.norm) @ one.proj.weight.T + one.proj.bias


def test_a_connector_equals_a_naive_one(made: Connector) -> None:
    x = torch.randn(2, 3, 16)
    with torch.no_grad():
        expected = torch.stack([naive(made, row) for row in x])
        torch.testing.assert_close(made(x), expected, rtol=1e-4, atol=1e-5)


def test_a_connector_is_saved(made: Connector, tmp_path: Path) -> None:
    made.save(dict(made.state_dict()), tmp_path)
    again, x = connector.load(tmp_path), torch.randn(1, 3, 16)
    assert again.config == CONFIG
    assert torch.equal(again(x), made(x))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="none is published; give bridge 'text'"):
        connector.load(tmp_path / "connector")
    with pytest.raises(SettingsError, match="width 16 cannot have 3 heads"):
        replace(CONFIG, heads=3)
    with pytest.raises(SettingsError, match="cannot have 4 heads with 3"):
        replace(CONFIG, kv_heads=3)
