"""Phi as in Show-o: LayerNorm on queries and keys, a biased output head, any attention mask.

transformers' Phi has the same blocks, but no bias in its head, and builds its own masks.
Suffixes: B sequences, L positions, M columns of keys, D width, V vocabulary, H heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class PhiConfig:
    """The decoder's shape, by default microsoft/phi-1_5's; `vocab_size` includes image codes and mask."""

    vocab_size: int
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    partial_rotary_factor: float = 0.5
    rope_theta: float = 10_000.0
    layer_norm_eps: float = 1e-5


KeyValue = tuple[Tensor, Tensor]  # of one layer, [B H M E] each


class Cache:
    """Keys and values of M previous positions, for each layer. It is read, never changed.

    It is not a dataclass: FSDP2 would find its tensors among the inputs of the whole model, take their gradients for
    the end of the backward pass, and lose part of the gradient of the embeddings.
    """

    def __init__(self, layers: tuple[KeyValue, ...]) -> None:
        self.layers = layers

    def expand(self, count: int) -> Cache:
        """Return a view of a cache of one sequence as one of `count` equal sequences."""
        return Cache(tuple((k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in self.layers))

    def rows(self, index: Sequence[int]) -> Cache:
        """Return the cache of the sequences with these numbers."""
        key, _ = self.layers[0]
        if list(index) == list(range(len(key))):
            return self
        if len(key) == 1:
            return self.expand(len(index))
        chosen = torch.tensor(index, device=key.device)
        return Cache(tuple((k.index_select(0, chosen), v.index_select(0, chosen)) for k, v in self.layers))

    def leaves(self) -> Cache:
        """Return a detached copy in float32 (at least), whose gradients add up without rounding to a smaller type."""
        return Cache(tuple((_leaf(k), _leaf(v)) for k, v in self.layers))

    def followed_by(self, later: Cache) -> Cache:
        """Return the cache of these positions and those of `later`."""
        return Cache(tuple(_join(*pair) for pair in zip(self.layers, later.layers, strict=True)))


def _join(before: KeyValue, later: KeyValue) -> KeyValue:
    key, value = (torch.cat((b.to(x.dtype), x), 2) for b, x in zip(before, later, strict=True))
    return key, value


def _leaf(x: Tensor) -> Tensor:
    return _at_least_float32(x.detach()).requires_grad_()


class Attention(nn.Module):
    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.rotary = int(width // self.heads * config.partial_rotary_factor)
        self.q_proj, self.k_proj, self.v_proj, self.dense = (nn.Linear(width, width) for _ in range(4))
        self.q_layernorm, self.k_layernorm = (
            nn.LayerNorm(width // self.heads, eps=config.layer_norm_eps) for _ in range(2)
        )

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None, past: KeyValue | None
    ) -> tuple[Tensor, KeyValue]:
        """Return the mixed values [B L D], and the keys and values of the L tokens."""
        shape = (*x.shape[:2], self.heads, -1)
        query = self._rotate(self.q_layernorm(self.q_proj(x).view(shape)).transpose(1, 2), rotation)
        key = self._rotate(self.k_layernorm(self.k_proj(x).view(shape)).transpose(1, 2), rotation)
        value = self.v_proj(x).view(shape).transpose(1, 2)
        query, key = query.to(value.dtype), key.to(value.dtype)  # autocast computes norms in float32
        keys, values = (key, value) if past is None else _join(past, (key, value))
        mixed = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        out: Tensor = self.dense(mixed.transpose(1, 2).flatten(2))
        return out, (key, value)

    def _rotate(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate the first `rotary` dimensions of each head, with halves as pairs."""
        cos, sin = (part.to(x.dtype) for part in rotation)
        rotated, rest = x[..., : self.rotary], x[..., self.rotary :]
        first, second = rotated.chunk(2, -1)
        return torch.cat((rotated * cos + torch.cat((-second, first), -1) * sin, rest), -1)


class Mlp(nn.Module):
    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """Attention and MLP in parallel, from one norm."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn, self.mlp = Attention(config), Mlp(config)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None, past: KeyValue | None
    ) -> tuple[Tensor, KeyValue]:
        normed = self.input_layernorm(x)
        if torch.is_autocast_enabled(x.device.type):  # once, not in each of the four products that read it
            normed = normed.to(torch.get_autocast_dtype(x.device.type))
        mixed, fresh = self.self_attn(normed, rotation, mask, past)
        out: Tensor = x + mixed + self.mlp(normed)
        return out, fresh


class Head(nn.Linear):
    """The output layer; logits are computed for a range of columns."""

    def logits(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Return columns [first, last) of the logits, in float32 (or float64): [... D] -> [... last - first]."""
        return linear(hidden, self.weight[first:last], self.bias[first:last])


class Trunk(nn.Module):
    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class Phi(nn.Module):
    """Keys: model.{embed_tokens,layers,final_layernorm}.*, lm_head.{weight,bias}.

    With `checkpointing` the activations of a block are computed again in the backward pass instead of kept.
    """

    checkpointing = False

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = Head(config.hidden_size, config.vocab_size)

    def forward(
        self,
        ids_BL: Tensor,
        mask: Tensor | None,
        past: Cache | None = None,
        start: int = 0,
        keep: Callable[[KeyValue], None] = lambda _: None,
    ) -> Tensor:
        """Return final hidden states [B L D]; the first of the L tokens has position `start`.

        `mask` is bool [B 1 L M], True where row L attends to column M (the columns of `past` come first); None attends
        to everything. `keep` is called with each layer's keys and values of the L tokens.
        """
        x = self.model.embed_tokens(ids_BL)
        rotation = self._rotation(start, ids_BL.shape[1])
        befores = [None] * len(self.model.layers) if past is None else past.layers
        for block, before in zip(self.model.layers, befores, strict=True):
            x, fresh = self._block(block, x, rotation, mask, before)
            keep(fresh)
        out: Tensor = self.model.final_layernorm(x)
        return out

    def encode(
        self, ids_BL: Tensor, mask: Tensor | None, past: Cache | None = None, start: int = 0
    ) -> tuple[Tensor, Cache]:
        """Return what `forward` returns, and the cache of the L tokens alone."""
        fresh: list[KeyValue] = []
        hidden = self(ids_BL, mask, past, start, fresh.append)
        return hidden, Cache(tuple(fresh))

    def _block(self, block: nn.Module, *inputs: object) -> tuple[Tensor, KeyValue]:
        found: tuple[Tensor, KeyValue]
        if self.checkpointing and torch.is_grad_enabled():
            found = checkpoint(block, *inputs, use_reentrant=False)
        else:
            found = block(*inputs)
        return found

    def logits(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Return columns [first, last) of the head's logits: [... D] -> [... last - first].

        They are computed in float32 (or float64), also under autocast.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            return self.lm_head.logits(hidden, first, last)

    def _rotation(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin [L rotary] of positions start .. start + length - 1, in float32."""
        device = self.lm_head.weight.device
        rotary = int(self.config.hidden_size // self.config.num_attention_heads * self.config.partial_rotary_factor)
        rates = self.config.rope_theta ** (-torch.arange(0, rotary, 2, device=device, dtype=torch.float32) / rotary)
        angles = torch.arange(start, start + length, device=device, dtype=torch.float32)[:, None] * rates
        doubled = torch.cat((angles, angles), -1)
        return doubled.cos(), doubled.sin()


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the linear map in float32 (or float64)."""
    return functional.linear(*map(_at_least_float32, (x, weight, bias)))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
