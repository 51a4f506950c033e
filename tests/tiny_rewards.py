"""Tiny random reward models in the published formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCABULARY = 64


def image_reward(folder: Path) -> None:
    """Write `ImageReward.pt` and `med_config.json`: two blocks a tower, 32 px in patches of 8.

    Like the published file, it also holds unused tensors.
    """
    import torch

    folder.mkdir()
    width, text, blocks = 64, 32, 2
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": text,
        "intermediate_size": 4 * text,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": blocks,
        "pad_token_id": 0,
        "vocab_size": VOCABULARY,
        "encoder_width": 768,  # as published, but the image encoder's width is used
        "add_cross_attention": True,
    }
    (folder / "med_config.json").write_text(json.dumps(config))
    state: dict[str, Any] = {}

    def linear(name: str, after: int, before: int) -> None:
        state[f"{name}.weight"] = torch.randn(after, before) / before**0.5
        state[f"{name}.bias"] = torch.randn(after) / 5

    def norm(name: str, size: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + torch.randn(size) / 5, torch.randn(size) / 5

    vision = "blip.visual_encoder"
    state[f"{vision}.cls_token"], state[f"{vision}.pos_embed"] = torch.randn(1, 1, width), torch.randn(1, 17, width)
    state[f"{vision}.patch_embed.proj.weight"] = torch.randn(width, 3, 8, 8) / 5
    state[f"{vision}.patch_embed.proj.bias"] = torch.randn(width)
    for i in range(blocks):
        block = f"{vision}.blocks.{i}"
        linear(f"{block}.attn.qkv", 3 * width, width)
        linear(f"{block}.attn.proj", width, width)
        linear(f"{block}.mlp.fc1", 4 * width, width)
        linear(f"{block}.mlp.fc2", width, 4 * width)
        norm(f"{block}.norm1", width)
        norm(f"{block}.norm2", width)
    norm(f"{vision}.norm", width)
    read = "blip.text_encoder"
    state[f"{read}.embeddings.position_ids"] = torch.arange(48)[None]
    state[f"{read}.embeddings.word_embeddings.weight"] = torch.randn(VOCABULARY, text)
    state[f"{read}.embeddings.position_embeddings.weight"] = torch.randn(48, text) / 3
    norm(f"{read}.embeddings.LayerNorm", text)
    for i in range(blocks):
        layer = f"{read}.encoder.layer.{i}"
        for attention, source in (("attention", text), ("crossattention", width)):
            linear(f"{layer}.{attention}.self.query", text, text)
            linear(f"{layer}.{attention}.self.key", text, source)
            linear(f"{layer}.{attention}.self.value", text, source)
            linear(f"{layer}.{attention}.output.dense", text, text)
            norm(f"{layer}.{attention}.output.LayerNorm", text)
        linear(f"{layer}.intermediate.dense", 4 * text, text)
        linear(f"{layer}.output.dense", text, 4 * text)
        norm(f"{layer}.output.LayerNorm", text)
    for name, size in (("vision_proj", width), ("text_proj", text)):
        linear(f"blip.{name}", 256, size)
    widths = (text, 1024, 128, 64, 16, 1)
    for place, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        linear(f"mlp.layers.{place}", after, before)
    torch.save(state, folder / "ImageReward.pt")
