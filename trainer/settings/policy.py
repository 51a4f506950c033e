"""The table `[trainer.policy]`: a union of the families, tagged by `family`, each with its sampler inside."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trainer.settings.fields import Directory, ModelSource, Node


class ShowOSamplerSettings(Node):
    """MaskGIT sampling; logits are (1 + g) * conditional - g * unconditional, with g `guidance_scale`.

    Each step commits the positions of highest confidence: the log-probability of the code that was "drawn", as in
    Show-o, or "max_logp", that of the likeliest code, plus noise of scale `temperature`, which falls to 0. `schedule`
    is the share of positions that is still masked at r = t / T: "cosine", cos(pi/2 r) as in Show-o, "linear", 1 - r,
    or "quadratic", (1 - r)^2. The last two commit earlier, so that a preview says more about the finished image.
    """

    denoising_steps: int = Field(50, ge=2)
    guidance_scale: float = Field(5.0, ge=0)
    temperature: float = Field(1.0, gt=0)
    confidence: Literal["drawn", "max_logp"] = "drawn"
    schedule: Literal["cosine", "linear", "quadratic"] = "cosine"
    max_new_tokens: int = Field(100, ge=1)


class LoraSettings(Node):
    """Low-rank adapters (Hu et al. 2022), trained instead of the weights: W x + alpha / rank * B A x.

    `targets` are the names of the linear layers that have one, or the ends of their names.
    """

    rank: int = Field(32, ge=1)
    alpha: int = Field(64, ge=1)
    targets: tuple[str, ...] = Field(("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"), min_length=1)


class ShowOSettings(Node):
    """A Show-o directory or hub id ('org/name' or 'org/name@REVISION'), and its image tokenizer.

    `vq` null is the directory `vq` in `model`, or the tokenizer of the published models. `positions` "masked" scores
    sampled positions, "committed" those of them whose code stays (exact with the sampler's `confidence` "max_logp"),
    "all" every position as in Sync-R1's eq. 1. `checkpointing` computes the activations of each
    block twice instead of keeping them for the backward pass. `dtype` is that of matrix products and attention;
    weights, logits, gradients and optimizer stay float32. `concepts` are directories of concept tokens that
    `synod personalize` wrote; prompts may then use their names. `train` "norms" trains the gains of the layer norms
    alone, "rows" the concepts' tokens alone; `lora` trains adapters in place of weights.
    """

    family: Literal["show_o"] = "show_o"
    model: ModelSource
    vq: ModelSource | None = None
    positions: Literal["masked", "committed", "all"] = "masked"
    sampler: ShowOSamplerSettings = ShowOSamplerSettings()
    checkpointing: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    concepts: tuple[Directory, ...] = ()
    train: Literal["all", "norms", "rows"] = "all"
    lora: LoraSettings | None = None

    @model_validator(mode="after")
    def _adapters_or_weights(self) -> ShowOSettings:
        if self.lora is not None and self.train != "all":
            raise ValueError(f"train '{self.train}' and lora name different parameters to train; remove one of them")
        return self

    @property
    def image_steps(self) -> int:
        """T, the number of sampling steps of an image."""
        return self.sampler.denoising_steps


PolicySettings = ShowOSettings  # with a second family: Annotated[A | B, Field(discriminator="family")]
