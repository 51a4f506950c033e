"""What carries a language model's understanding of a prompt to an image transformer: learned queries and a connector.

As in UniRL-Zero (arXiv 2510.17937) queries are appended to the embedded prompt, and the language model's last hidden
states at the queries pass through a bidirectional transformer (RMSNorm, SwiGLU, rotary positions, grouped-query
attention) to the width of the image transformer's captions. There are no public weights.

Suffixes: B prompts, Q queries, W width of the language model, C width of a caption.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from synod.errors import SettingsError
from trainer.policy.weights import (
    check_weights,
    parameters_on_meta,
    parse_config,
    read_config,
    read_weights,
    write_weights,
)

WEIGHTS: Final = "model.safetensors"
THETA: Final = 10_000.0  # of the rotary positions


@dataclass(frozen=True)
class ConnectorConfig:
    """UniRL-Zero has 256 queries of width 2048, 12 layers and captions of width 2304."""

    queries: int
    width: int
    caption_width: int
    layers: int = 12
    heads: int = 16
    kv_heads: int = 2

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads) or self.heads % self.kv_heads:
            raise SettingsError(
                f"a connector of width {self.width} cannot have {self.heads} heads with {self.kv_heads} of keys; give "
                "heads of an even width, and a number of them that those of keys divide"
            )


class Connector(nn.Module):
    """The queries, and the transformer after the language model."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.config = config
        self.queries = nn.Parameter(torch.randn(config.queries, config.width) * 0.02)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.proj = nn.Linear(config.width, config.caption_width)

    def forward(self, hidden_BQW: Tensor) -> Tensor:
        """Return captions [B Q C] from the language model's hidden states at the queries."""
        cos, sin = _rotations(hidden_BQW.shape[1], self.config.width // self.config.heads, hidden_BQW.device)
        for layer in self.layers:
            hidden_BQW = layer(hidden_BQW, cos, sin)
        found: Tensor = self.proj(self.norm(hidden_BQW))
        return found

    def read(self, model: Any, embedded_BLW: Tensor) -> Tensor:
        """Return captions [B Q C] of embedded prompts, which the language model reads with the queries behind them."""
        queries = self.queries.to(embedded_BLW.dtype).expand(len(embedded_BLW), -1, -1)
        read = model(inputs_embeds=torch.cat((embedded_BLW, queries), 1), use_cache=False).last_hidden_state
        return self.forward(read[:, -self.config.queries :])

    def save(self, state: dict[str, Tensor], directory: Path) -> None:
        """Write a directory that `load` reads, with these weights."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        write_weights(state, directory, WEIGHTS)


def read_connector_config(directory: Path) -> ConnectorConfig:
    """Read the config.json of a connector. Raises SettingsError."""
    if not directory.is_dir():
        raise SettingsError(
            f"{directory} does not exist: bridge 'queries' needs a connector that was trained for its two models, and "
            "none is published; give bridge 'text'"
        )
    return parse_config(ConnectorConfig, read_config(directory), f"{directory}/config.json")


def load(directory: Path) -> Connector:
    """Read a connector. Raises SettingsError for files that are missing or do not fit each other."""
    connector = _build(directory)
    read_weights(connector, directory)
    return connector


def check(directory: Path) -> None:
    """Check the keys and shapes of a connector's weights, without reading them. Raises SettingsError."""
    check_weights(_build(directory), directory)


def _build(directory: Path) -> Connector:
    """Return the connector of a directory, without memory for its weights."""
    config = read_connector_config(directory)
    with parameters_on_meta():
        return Connector(config)


class _Layer(nn.Module):
    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        width, head = config.width, config.width // config.heads
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, head * config.kv_heads, bias=False)
        self.v_proj = nn.Linear(width, head * config.kv_heads, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.gate_proj = nn.Linear(width, 2 * width, bias=False)
        self.up_proj = nn.Linear(width, 2 * width, bias=False)
        self.down_proj = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y = self.attention_norm(x)
        q = _split(self.q_proj(y), self.heads)
        k, v = (_split(proj(y), self.kv_heads) for proj in (self.k_proj, self.v_proj))
        q, k = (_rotate(one, cos, sin).to(v.dtype) for one in (q, k))
        mixed = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        x = x + self.o_proj(mixed.transpose(1, 2).flatten(2))
        y = self.mlp_norm(x)
        found: Tensor = x + self.down_proj(functional.silu(self.gate_proj(y)) * self.up_proj(y))
        return found


def _split(x: Tensor, heads: int) -> Tensor:
    """Return [B heads Q width / heads] from [B Q width]."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


def _rotations(length: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [length, width / 2] of the rotary positions."""
    frequencies = THETA ** (-torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(length, device=device)[:, None] * frequencies
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
