"""SANA's linear attention in float32 inside autocast, which would otherwise round its sums to bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def use_float32_sums(transformer: Any) -> None:
    """Give every block of a SanaTransformer2DModel this attention."""
    for block in transformer.transformer_blocks:
        block.attn1.set_processor(Float32LinearAttention())


class Float32LinearAttention:
    """An attention processor of diffusers: relu(q) (relu(k)^T v) / (relu(q) sum relu(k)), as in SANA (Xie et al. 2024).

    Projections run in autocast's dtype, what is between them in float32, as the published model does without autocast.
    Outside of autocast it equals diffusers' own.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the attention of hidden_states [B N width] over encoder_hidden_states, or over themselves."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        with torch.autocast(hidden_states.device.type, enabled=False):
            q, k, v = (one.unflatten(-1, (attn.heads, -1)).transpose(1, 2).float() for one in (query, key, value))
            q, k = q.relu(), k.relu()
            weighted = q @ (k.transpose(-1, -2) @ v)  # [B heads N width / heads]
            total = (q @ k.sum(-2)[..., None]).add(1e-15)
            mixed = (weighted / total).transpose(1, 2).flatten(2)
        found: Tensor = attn.to_out[1](attn.to_out[0](mixed.to(hidden_states.dtype)))
        return found
