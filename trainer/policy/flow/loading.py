"""Read a text-to-image pipeline in diffusers' layout: `load("stabilityai/stable-diffusion-3.5-medium")`.

diffusers takes seconds to import: only functions import it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from synod.errors import SettingsError
from synod.scoring import show
from trainer.policy.flow import edits
from trainer.policy.flow.attention import use_float32_sums
from trainer.policy.flow.memory import Dtype
from trainer.policy.flow.pipelines import Pipeline, Shapes, read_pipeline, read_shapes
from trainer.policy.flow.policy import FlowPolicy
from trainer.policy.flow.segments import Sampler
from trainer.policy.weights import Source, check_weights, directory_of, parameters_on_meta, read_weights

DEFAULT: Final = Sampler.of(10, shift=3.0, eta=0.7)


@dataclass(frozen=True)
class Parts:
    """A pipeline's source and its configuration, without weights; `has_edits`: it is to read source images."""

    model: str
    pipeline: Pipeline
    configs: dict[str, dict[str, Any]]
    shapes: Shapes
    has_edits: bool = False

    @classmethod
    def find(
        cls,
        model: str | Path,
        resolution: int | None = None,
        max_text_length: int | None = None,
        *,
        has_edits: bool = False,
    ) -> Parts:
        """Read the configuration files of a directory or hub id, and check that the parts fit each other.

        Raises SettingsError as `read_pipeline`, `read_shapes` and `edits.check_editor` do.
        """
        directory = directory_of(model, configs_only=True)
        pipeline, configs = read_pipeline(directory)
        shapes = read_shapes(directory, pipeline, configs, resolution, max_text_length)
        if has_edits:
            edits.check_editor(pipeline.transformer, str(model))
        return cls(str(model), pipeline, configs, shapes, has_edits)

    def sources(self) -> list[Source]:
        """Return the source of each part, the transformer first. Downloads a trained editor, to see if there is one."""
        folders = self.pipeline.folders
        if self.has_edits and self.editor(directory_of(self.model, folders=(edits.EDITS,))):
            folders = (*folders, edits.EDITS)
        return [Source("policy.model", self.model, folder=folder) for folder in folders]

    def directory(self) -> Path:
        """Return the directory with the weights of all parts; downloads them."""
        return directory_of(self.model, folders=(*self.pipeline.folders, *([edits.EDITS] if self.has_edits else [])))

    def editor(self, directory: Path) -> Path | None:
        """Return the directory of a trained editor in that of the pipeline, or None if it has none or needs none."""
        found = directory / edits.EDITS
        return found if self.has_edits and found.is_dir() else None


def load(
    model: str | Path,
    *,
    resolution: int | None = None,
    max_text_length: int | None = None,
    sampler: Sampler = DEFAULT,
    guidance_scale: float = 4.5,
    guidance_reference: float = 1.0,
    has_edits: bool = False,
    evaluation: Sampler | None = None,
    dtype: Dtype = "float32",
    checkpointing: bool = False,
    kind: Callable[..., FlowPolicy] = FlowPolicy,
) -> FlowPolicy:
    """Read a pipeline's directory or hub id ('org/name' or 'org/name@REVISION').

    The transformer, which is trained, and the codec have float32 weights; the text encoders have `dtype`. `kind` makes
    the policy of the arguments of a FlowPolicy. `has_edits` adds what reads a source image, by the weights in the
    directory `edits` of the pipeline, or new ones. Raises SettingsError for files that are missing or do not fit.
    """
    parts = Parts.find(model, resolution, max_text_length, has_edits=has_edits)
    directory = parts.directory()
    check(parts, directory)
    import diffusers

    components: dict[str, Any] = {
        "transformer": _filled(parts, "transformer", directory),
        "vae": _filled(parts, "vae", directory),
        "scheduler": _scheduler(parts),
        **{folder: _encoder(kind, directory / folder, dtype) for folder, kind in parts.pipeline.encoders.items()},
        **{folder: _tokenizer(directory / folder) for folder in parts.pipeline.tokenizers},
    }
    components["vae"].use_slicing = True  # an image at a time, so that memory does not grow with the batch
    if parts.pipeline.transformer == "SanaTransformer2DModel" and dtype == "bfloat16":
        use_float32_sums(components["transformer"])
    if has_edits:
        trained = parts.editor(directory)
        if trained is None:
            show.notify(
                f"{model} has no directory '{edits.EDITS}': the layers for sources are new, and read nothing yet"
            )
        edits.attach(components["transformer"], trained)
    if checkpointing:
        components["transformer"].enable_gradient_checkpointing()
    pipe = getattr(diffusers, parts.pipeline.name)(**components)
    config = parts.configs["transformer"]
    return kind(
        parts.pipeline,
        pipe,
        parts.shapes,
        config,
        sampler,
        guidance_scale=guidance_scale,
        guidance_reference=guidance_reference,
        evaluation=evaluation,
        dtype=dtype,
    )


def check(parts: Parts, directory: Path | None = None) -> None:
    """Check the keys and shapes of the transformer's, the codec's and an editor's weights, without reading them.

    Downloads what is missing. Raises SettingsError.
    """
    directory = directory or parts.directory()
    modules = {folder: build(parts, folder) for folder in ("transformer", "vae")}
    for folder, module in modules.items():
        check_weights(module, directory / folder)
    if trained := parts.editor(directory):
        edits.check(modules["transformer"], trained)
    for folder in parts.pipeline.tokenizers:
        _tokenizer(directory / folder)


def build(parts: Parts, folder: str) -> nn.Module:
    """Return the transformer or the codec of a pipeline, without memory for its weights."""
    import diffusers

    name = parts.pipeline.transformer if folder == "transformer" else parts.pipeline.codec
    with parameters_on_meta():
        module: nn.Module = getattr(diffusers, name).from_config(parts.configs[folder])
    return module


def _filled(parts: Parts, folder: str, directory: Path) -> nn.Module:
    module = build(parts, folder)
    read_weights(module, directory / folder)
    return module.eval().requires_grad_(folder == "transformer")


def _scheduler(parts: Parts) -> Any:
    """Return the scheduler as it was published: it is not used, but saved with the policy."""
    import diffusers

    config = parts.configs["scheduler"]
    return getattr(diffusers, str(config["_class_name"])).from_config(config)


def _encoder(kind: str, directory: Path, dtype: Dtype) -> nn.Module:
    import transformers

    try:
        module, found = getattr(transformers, kind).from_pretrained(
            directory, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise SettingsError(f"{directory} cannot be read as a {kind} ({cause}); download it again") from None
    if found["missing_keys"]:
        names = ", ".join(sorted(found["missing_keys"])[:3])
        raise SettingsError(f"{directory} lacks {names}; give a {kind} of this config.json")
    frozen: nn.Module = module.eval().requires_grad_(False)
    return frozen


def _tokenizer(directory: Path) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise SettingsError(f"{directory} has no usable tokenizer ({cause}); download it again") from None
