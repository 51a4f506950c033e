"""The tables `[trainer.policy]` and `[trainer.sampler]`."""

from __future__ import annotations

from pydantic import Field

from trainer.settings.fields import ModelSource, Node


class PolicySettings(Node):
    """A Show-o directory or hub id, and its image tokenizer; null: the directory `vq` in `model`."""

    model: ModelSource
    vq: ModelSource | None = None


class SamplerSettings(Node):
    """MaskGIT sampling; logits are (1 + g) * conditional - g * unconditional, with g `guidance_scale`."""

    denoising_steps: int = Field(50, ge=2)
    guidance_scale: float = Field(5.0, ge=0)
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(100, ge=1)
