"""The text-to-image pipelines that can be trained, and what their configuration files must agree on.

A pipeline is a directory in diffusers' layout: model_index.json, and a folder for each part. Everything here reads
configuration files alone, so that a mistake is found before any weight is read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from synod.errors import SettingsError
from trainer.policy.weights import parse_config, read_config

Conditions = Mapping[str, Tensor]  # keyword arguments of the transformer that follow from a prompt, one row each
LONGEST_T5: Final = 512  # tokens, the limit of the Stable Diffusion 3 pipeline


@dataclass(frozen=True)
class SanaTransformer:
    """What is read of a SanaTransformer2DModel's config.json."""

    in_channels: int
    out_channels: int
    sample_size: int
    patch_size: int
    caption_channels: int
    guidance_embeds: bool = False
    timestep_scale: float = 1.0


@dataclass(frozen=True)
class SD3Transformer:
    """What is read of an SD3Transformer2DModel's config.json."""

    in_channels: int
    out_channels: int
    sample_size: int
    patch_size: int
    joint_attention_dim: int
    pooled_projection_dim: int
    pos_embed_max_size: int


@dataclass(frozen=True)
class Codec:
    """An image codec: the channels of its latents, and how many pixels one latent stands for in each direction.

    A latent z is decoded as z / scaling_factor + shift_factor.
    """

    latent_channels: int
    factor: int
    scaling_factor: float
    shift_factor: float


@dataclass(frozen=True)
class Shapes:
    """Numbers of a pipeline: its images [resolution resolution 3], their latents [channels side side], and its texts.

    `time_scale` multiplies the times t in (0, 1]; `codec_scale` and `codec_shift` take a latent to what the codec
    decodes, z / scale + shift.
    """

    resolution: int
    channels: int
    side: int
    text_length: int
    time_scale: float
    codec_scale: float
    codec_shift: float


@dataclass(frozen=True)
class Pipeline:
    """One of diffusers' pipelines: its classes by folder, its usual text length, and how it reads a prompt.

    check    directory, configs by folder, text length -> time scale, or SettingsError if widths do not fit
    encode   pipeline, prompt, text length, device -> the transformer's arguments
    num_cut  pipeline, prompt, text length -> how many tokens of the prompt its longest text encoder does not read
    """

    name: str
    transformer: str
    codec: str
    encoders: Mapping[str, str]
    tokenizers: tuple[str, ...]
    text_length: int
    check: Callable[[Path, Mapping[str, Mapping[str, Any]], int], float]
    encode: Callable[[Any, str, int, torch.device], Conditions]
    num_cut: Callable[[Any, str, int], int]

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders that have weights."""
        return ("transformer", "vae", *self.encoders)


def read_pipeline(directory: Path) -> tuple[Pipeline, dict[str, dict[str, Any]]]:
    """Return the pipeline of a directory, and the configuration of each of its parts by folder.

    Raises SettingsError for a directory of another layout, another pipeline or parts of other classes, and for a
    scheduler that is not flow matching.
    """
    index = read_config(directory, "model_index.json")
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise SettingsError(
            f"{directory} is a pipeline of class '{name}'; policies of family 'flow' are {', '.join(PIPELINES)}"
        )
    pipeline = PIPELINES[str(name)]
    expected = {"transformer": pipeline.transformer, "vae": pipeline.codec, **pipeline.encoders}
    for folder, kind in expected.items():
        found = index.get(folder)
        given = found[1] if isinstance(found, list) and len(found) == 2 else found
        if given != kind:
            raise SettingsError(f"{directory}: {folder} is of class '{given}' in model_index.json; give a {kind}")
    configs = {folder: read_config(directory / folder) for folder in expected}
    configs["scheduler"] = read_config(directory / "scheduler", "scheduler_config.json")
    _check_scheduler(directory, configs["scheduler"])
    return pipeline, configs


def read_shapes(
    directory: Path,
    pipeline: Pipeline,
    configs: Mapping[str, Mapping[str, Any]],
    resolution: int | None,
    max_text_length: int | None,
) -> Shapes:
    """Return the shapes of latents and texts for images of `resolution` pixels (None: the transformer's own).

    Raises SettingsError for a size that the transformer or the codec does not have, for latents that the codec cannot
    decode, and for text encoders whose width does not fit the transformer.
    """
    codec = _codec(directory, pipeline, configs["vae"])
    channels, side = _latents(directory, configs["transformer"], codec, resolution)
    text_length = max_text_length or pipeline.text_length
    time_scale = pipeline.check(directory, configs, text_length)
    return Shapes(
        side * codec.factor, channels, side, text_length, time_scale, codec.scaling_factor, codec.shift_factor
    )


def _check_scheduler(directory: Path, config: Mapping[str, Any]) -> None:
    name, kind = config.get("_class_name"), config.get("prediction_type")
    solves_flow = bool(config.get("use_flow_sigmas")) and kind == "flow_prediction"
    if not solves_flow and not str(name).startswith("FlowMatch"):
        raise SettingsError(
            f"{directory}/scheduler is a {name} with prediction_type '{kind}', so the model does not predict the "
            "velocity of flow matching; give a model with a FlowMatch scheduler, or one with use_flow_sigmas"
        )


def _codec(directory: Path, pipeline: Pipeline, config: Mapping[str, Any]) -> Codec:
    blocks = config.get("encoder_block_out_channels" if pipeline.codec == "AutoencoderDC" else "block_out_channels")
    if not isinstance(blocks, list) or not blocks:
        raise SettingsError(f"{directory}/vae/config.json has no list of block channels; give a {pipeline.codec}")
    table = {**config, "factor": 2 ** (len(blocks) - 1), "shift_factor": config.get("shift_factor") or 0.0}
    return parse_config(Codec, table, f"{directory}/vae/config.json")


def _latents(directory: Path, config: Mapping[str, Any], codec: Codec, resolution: int | None) -> tuple[int, int]:
    """Return channels and side of the latents."""
    where = f"{directory}/transformer/config.json"
    fields = ("in_channels", "out_channels", "sample_size", "patch_size")
    inputs, outputs, sample, patch = (_number(config, name, where) for name in fields)
    if (inputs, outputs) != (codec.latent_channels, codec.latent_channels):
        raise SettingsError(
            f"{directory}: the transformer takes latents of {inputs} channels and returns {outputs}, but those of the "
            f"vae have {codec.latent_channels}; give the parts of one model"
        )
    resolution = resolution or sample * codec.factor
    if resolution % (codec.factor * patch):
        raise SettingsError(
            f"[trainer.policy] resolution = {resolution} is not a multiple of {codec.factor * patch}, the pixels of a "
            f"patch of latents in {directory}; give one that is, such as {sample * codec.factor}"
        )
    side, most = resolution // codec.factor, config.get("pos_embed_max_size")
    if most is not None and side // patch > most:
        raise SettingsError(
            f"[trainer.policy] resolution = {resolution} needs {side // patch} patches a side, but {directory} has "
            f"positions for {most}; give at most {most * patch * codec.factor}"
        )
    return inputs, side


def _number(config: Mapping[str, Any], name: str, where: str) -> int:
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise SettingsError(f"{where}: {name} is {value!r}; give a positive integer")
    return value


def _check_sana(directory: Path, configs: Mapping[str, Mapping[str, Any]], text_length: int) -> float:
    transformer = parse_config(SanaTransformer, configs["transformer"], f"{directory}/transformer/config.json")
    width = _number(configs["text_encoder"], "hidden_size", f"{directory}/text_encoder/config.json")
    if transformer.caption_channels != width:
        raise SettingsError(
            f"{directory}: the transformer takes captions of width {transformer.caption_channels}, but the text "
            f"encoder returns {width}; give the parts of one model"
        )
    if transformer.guidance_embeds:
        raise SettingsError(
            f"{directory}: the transformer is distilled for a guidance scale as its input (guidance_embeds), which has "
            "no velocity without the prompt; give a SANA without it"
        )
    return transformer.timestep_scale


def _check_sd3(directory: Path, configs: Mapping[str, Mapping[str, Any]], text_length: int) -> float:
    transformer = parse_config(SD3Transformer, configs["transformer"], f"{directory}/transformer/config.json")
    clips = [(configs[folder], f"{directory}/{folder}/config.json") for folder in ("text_encoder", "text_encoder_2")]
    hidden = sum(_number(config, "hidden_size", where) for config, where in clips)
    pooled = sum(_number(config, "projection_dim", where) for config, where in clips)
    width = _number(configs["text_encoder_3"], "d_model", f"{directory}/text_encoder_3/config.json")
    if transformer.joint_attention_dim != width or hidden > width:
        raise SettingsError(
            f"{directory}: the transformer takes captions of width {transformer.joint_attention_dim}, but the text "
            f"encoders return {width} (T5) and {hidden} (both CLIP); give the parts of one model"
        )
    if transformer.pooled_projection_dim != pooled:
        raise SettingsError(
            f"{directory}: the transformer takes pooled texts of width {transformer.pooled_projection_dim}, but both "
            f"CLIP encoders return {pooled}; give the parts of one model"
        )
    if text_length > LONGEST_T5:
        raise SettingsError(
            f"[trainer.policy] max_text_length = {text_length} is above {LONGEST_T5}, the most that the pipeline of "
            f"{directory} reads; give at most {LONGEST_T5}"
        )
    return 1.0


def _encode_sana(pipe: Any, prompt: str, length: int, device: torch.device) -> Conditions:
    """Read a prompt behind the instruction of the published pipeline; the empty prompt has none, as there."""
    embeds, mask, *_ = pipe.encode_prompt(
        prompt,
        do_classifier_free_guidance=False,
        device=device,
        max_sequence_length=length,
        complex_human_instruction=_instruction(pipe) if prompt else None,
    )
    return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}


def _num_cut_sana(pipe: Any, prompt: str, length: int) -> int:
    """Count as `encode_prompt` does, where the length leaves out the instruction."""
    if not prompt:
        return 0
    instruction = "\n".join(_instruction(pipe))
    texts = (instruction, instruction + prompt.lower().strip())  # as the pipeline reads them
    before, whole = (len(pipe.tokenizer(text, verbose=False)["input_ids"]) for text in texts)
    return max(0, whole - (before + length - 2))


def _instruction(pipe: Any) -> list[str]:
    """Return the lines of the published pipeline's instruction."""
    found: list[str] = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
    return found


def _encode_sd3(pipe: Any, prompt: str, length: int, device: torch.device) -> Conditions:
    embeds, _, pooled, _ = pipe.encode_prompt(
        prompt, prompt, prompt, device=device, do_classifier_free_guidance=False, max_sequence_length=length
    )
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


def _num_cut_sd3(pipe: Any, prompt: str, length: int) -> int:
    """Count the tokens of T5, the text encoder that `length` is for."""
    return max(0, len(pipe.tokenizer_3(prompt, verbose=False)["input_ids"]) - length)


PIPELINES: Final = {
    one.name: one
    for one in (
        Pipeline(
            "SanaPipeline",
            "SanaTransformer2DModel",
            "AutoencoderDC",
            {"text_encoder": "Gemma2Model"},
            ("tokenizer",),
            300,
            _check_sana,
            _encode_sana,
            _num_cut_sana,
        ),
        Pipeline(
            "StableDiffusion3Pipeline",
            "SD3Transformer2DModel",
            "AutoencoderKL",
            {
                "text_encoder": "CLIPTextModelWithProjection",
                "text_encoder_2": "CLIPTextModelWithProjection",
                "text_encoder_3": "T5EncoderModel",
            },
            ("tokenizer", "tokenizer_2", "tokenizer_3"),
            256,
            _check_sd3,
            _encode_sd3,
            _num_cut_sd3,
        ),
    )
}
