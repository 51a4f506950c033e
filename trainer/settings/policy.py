"""The table `[trainer.policy]`: a union of the families, tagged by `family`, each with its sampler inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

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
    def learning(self) -> tuple[Literal["text", "image"], ...]:
        """The modalities whose decisions have a gradient."""
        return "text", "image"

    @property
    def apart(self) -> tuple[Literal["text", "image"], ...]:
        """The modalities with trained parameters that sample them alone: none, one model samples both."""
        return ()

    @property
    def image_steps(self) -> int:
        """T, the number of sampling steps of an image."""
        return self.sampler.denoising_steps

    @property
    def adapters(self) -> LoraSettings:
        """The adapters, or those that it would have by default."""
        return self.lora or LoraSettings()


class FlowSamplerSettings(Node):
    """Sampling of a flow-matching model from noise at t = 1 to the image at t = 0 (`trainer.policy.flow.sde`).

    The times are those of `denoising_steps` equal steps, shifted by `shift` once ("once"), or those of diffusers'
    scheduler ("diffusers"). Velocities are u + g (c - u), with g `guidance_scale`; 1: without guidance. Those of an
    edit are u + g_ref (r - u) + g (c - r), with r that with the source alone and g_ref `guidance_reference`. The steps
    `sde`, [first, last] counted from 0, add noise of size `eta` and are decisions; null: all but the last step, which
    has no density. The others are steps of the ODE. Evaluations draw `evaluation_steps` steps of the ODE; 0: as
    training draws.
    """

    denoising_steps: int = Field(10, ge=2)
    shift: float = Field(3.0, gt=0)
    schedule: Literal["once", "diffusers"] = "once"
    eta: float = Field(0.7, gt=0)
    guidance_scale: float = Field(4.5, ge=1)
    guidance_reference: float = Field(1.0, ge=0)
    sde: tuple[int, int] | None = None
    evaluation_steps: int = Field(20, ge=0)

    @model_validator(mode="after")
    def _steps_with_a_density(self) -> FlowSamplerSettings:
        if self.sde is None:
            return self
        (first, last), limit = self.sde, self.denoising_steps - 2
        if not 0 <= first <= last <= limit:
            raise ValueError(
                f"sde [{first}, {last}] does not fit denoising_steps {self.denoising_steps}; give a window within "
                f"[0, {limit}], because the last step ends without noise and has no density"
            )
        return self


class FlowLoraSettings(LoraSettings):
    """Low-rank adapters on the attention of a flow-matching transformer."""

    targets: tuple[str, ...] = Field(("to_q", "to_k", "to_v", "to_out.0"), min_length=1)


class LanguageSettings(Node):
    """A vision-language model that answers queries, a directory or hub id; an answer has `max_new_tokens` at most.

    Prompts reach the image over the `bridge`: "text", the pipeline's own text encoder, or "queries", hidden states of
    this model, through the connector in the directory `connector` of the pipeline's.
    """

    model: ModelSource
    max_new_tokens: int = Field(512, ge=1)
    bridge: Literal["text", "queries"] = "text"


class FlowSettings(Node):
    """A flow-matching text-to-image pipeline in diffusers' layout, a directory or a hub id: SANA or Stable Diffusion 3.

    `resolution` is the side of the square images, null: that of the transformer's config.json. `max_text_length` is
    the number of tokens of the long text encoder, null: the pipeline's own. `checkpointing`, `dtype` and `lora` are as
    for Show-o: velocities are computed in `dtype`, everything that follows from them in float32.

    `language` is a model whose answers are appended to the prompt; null: prompts are drawn as they are. `trains` are
    the modalities whose model is trained, null: every model that there is. `edits` adds layers that read a source
    image (`trainer.policy.flow.edits`): those in the directory `edits` of the pipeline, or new ones, which read
    nothing yet.
    """

    family: Literal["flow"]
    model: ModelSource
    resolution: int | None = Field(None, ge=8)
    max_text_length: int | None = Field(None, ge=2)
    sampler: FlowSamplerSettings = FlowSamplerSettings()
    checkpointing: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: FlowLoraSettings | None = None
    language: LanguageSettings | None = None
    edits: bool = False
    trains: tuple[Literal["text", "image"], ...] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _trains_a_model_that_is_there(self) -> FlowSettings:
        if self.language is None and "text" in (self.trains or ()):
            raise ValueError(
                f"trains {list(self.trained)} names the language model, but policy.language is null; give it a "
                "model, or trains ['image']"
            )
        return self

    @property
    def trained(self) -> tuple[Literal["text", "image"], ...]:
        """The modalities whose model is trained."""
        return self.trains or (("image",) if self.language is None else ("text", "image"))

    @property
    def learning(self) -> tuple[Literal["text", "image"], ...]:
        """The modalities whose decisions have a gradient: with the bridge "queries", images train the language too."""
        return ("text", "image") if self.language is not None and self.language.bridge == "queries" else self.trained

    @property
    def apart(self) -> tuple[Literal["text", "image"], ...]:
        """The modalities with trained parameters that sample them alone."""
        shared = self.language is not None and self.language.bridge == "queries"
        return tuple(kind for kind in self.trained if kind == "image" or not shared)

    @property
    def image_steps(self) -> int:
        """T, the number of sampling steps of an image."""
        return self.sampler.denoising_steps

    @property
    def adapters(self) -> LoraSettings:
        """The adapters, or those that it would have by default."""
        return self.lora or FlowLoraSettings()


def _family(table: object) -> str | None:
    if isinstance(table, Mapping):
        return str(table.get("family", "show_o"))
    return getattr(table, "family", None)


PolicySettings = Annotated[
    Annotated[ShowOSettings, Tag("show_o")] | Annotated[FlowSettings, Tag("flow")], Discriminator(_family)
]


def read_policy(table: Mapping[str, Any], folder: Path | None = None) -> PolicySettings:
    """Return the settings of a table `[trainer.policy]`; paths resolve from `folder`. Raises a ValidationError."""
    kind = FlowSettings if table.get("family") == "flow" else ShowOSettings
    return kind.model_validate(table, context={"folder": folder or Path.cwd()})
