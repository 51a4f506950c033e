"""A flow-matching text-to-image pipeline as a policy: SANA and Stable Diffusion 3, by the steps of `sde`.

The transformer is trained; the codec and the text encoders are frozen. Each SDE step is one decision, whose
log-probability is a mean over the latent's elements, as in Flow-GRPO (arXiv 2505.05470). Sampling, update and reference
share one function for the velocity. It is computed in the policy's dtype, everything that follows from it in float32.

Suffixes: B segments, C channels and H W height and width of a latent, D decisions of a step (always one).
"""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from synod.contracts import Pixels
from synod.images import to_square
from trainer.policy.base import ParameterGroup, Terms
from trainer.policy.flow import edits, memory, sde
from trainer.policy.flow.memory import Dtype
from trainer.policy.flow.pipelines import Conditions, Pipeline, Shapes
from trainer.policy.flow.segments import LatentSegment, Sampler, normals
from trainer.policy.flow.texts import as_text, control_tokens
from trainer.policy.lora import Lora
from trainer.policy.weights import state_of, write_weights
from trainer.types import Condition, Modality, Query, Seed, Segment

ADAPTER: Final = "adapter"  # in a saved directory
CACHED_PROMPTS: Final = 256  # 0.7 GB for Stable Diffusion 3.5 in bfloat16
TRAINING_TIMES: Final = 1000  # what the transformers call t = 1
WEIGHTS: Final = "diffusion_pytorch_model.safetensors"
IMAGE_STREAM, SOURCE_STREAM = 1, 2  # of random numbers


class FlowPolicy:
    """The policy: a diffusers pipeline with its shapes, and how images are sampled from it.

    `config` is the transformer's config.json, which is saved as it was. Velocities are u + g (c - u), with g
    `guidance_scale`; 1: without guidance. Those of an edit are u + g_ref (r - u) + g (c - r), with r that with the
    source alone, and g_ref `guidance_reference`. Evaluations draw by the sampler `evaluation`, by default as training
    does.
    """

    def __init__(
        self,
        kind: Pipeline,
        pipe: Any,
        shapes: Shapes,
        config: Mapping[str, Any],
        sampler: Sampler,
        *,
        guidance_scale: float,
        guidance_reference: float = 1.0,
        evaluation: Sampler | None = None,
        dtype: Dtype = "float32",
    ) -> None:
        self.kind, self.pipe, self.shapes, self.config = kind, pipe, shapes, config
        self.sampler, self.guidance_scale, self.dtype = sampler, guidance_scale, dtype
        self.guidance_reference, self.evaluation = guidance_reference, evaluation or sampler
        self.module: nn.Module = pipe.transformer
        self.codec: nn.Module = pipe.vae
        self.encoders: nn.Module = nn.ModuleDict({name: getattr(pipe, name) for name in kind.encoders})
        self._reference: nn.Module | None = None
        self._lora: Lora | None = None
        self._control = control_tokens(getattr(pipe, name) for name in kind.tokenizers)
        self._prompts: OrderedDict[str, Conditions] = OrderedDict()
        self.log: Callable[[str], None] = tqdm.write
        self._has_warned = False

    @property
    def transformer(self) -> nn.Module:
        """The model of velocities: that of the policy, or inside `reference` that of the reference."""
        return self.module

    @property
    def device(self) -> torch.device:
        return next(self.codec.parameters()).device

    @property
    def image_steps(self) -> int:
        return self.sampler.steps

    def to(self, device: torch.device) -> None:
        self._prompts.clear()
        for module in (self.module, self.codec, self.encoders, self._reference):
            if module is not None:
                module.to(device)

    def answer(self, queries: Sequence[Query], seeds: Sequence[Seed]) -> Sequence[Segment]:
        raise NotImplementedError("a text-to-image pipeline has no language model that answers")

    # -- generation ---------------------------------------------------------------------------------------------------

    def start(self, prompts: Sequence[str], seeds: Sequence[Seed]) -> list[LatentSegment]:
        return self.begin(prompts, normals(seeds, IMAGE_STREAM, (self.sampler.steps + 1, *self._latent)))

    def begin(self, prompts: Sequence[str], noise_BTCHW: Tensor) -> list[LatentSegment]:
        """Return an image before its first step for each prompt, to be sampled with the given noise (`Sampler`)."""
        cuts = {prompt: self._num_cut(prompt) for prompt in prompts}
        if any(cuts.values()) and not self._has_warned:
            self._has_warned = True
            prompt, cut = max(cuts.items(), key=lambda pair: pair[1])
            self.log(
                f"the last {cut} tokens of the prompt {prompt!r} do not fit the {self.shapes.text_length} of the text "
                "encoder and are not read; `text_cut` counts such images from here on"
            )
        begun = self.sampler.start([Condition(prompt) for prompt in prompts], noise_BTCHW.to(self.device))
        return [replace(segment, num_cut=cuts[segment.prompt]) for segment in begun]

    def _num_cut(self, prompt: str) -> int:
        """Return how many tokens of a prompt are not read."""
        return self.kind.num_cut(self.pipe, as_text(prompt, self._control), self.shapes.text_length)

    def edit(self, conditions: Sequence[Condition], seeds: Sequence[Seed]) -> list[LatentSegment]:
        """Return an image before its first step for each condition, all with a source; the policy has `edits`."""
        begun = self.start([one.text for one in conditions], seeds)
        latents = {id(one.source): self.encode(one.source) for one in conditions if one.source is not None}
        noise = normals(seeds, SOURCE_STREAM, self._latent).to(self.device)
        return [
            replace(segment, condition=one, source_CHW=edits.noised(latents[id(one.source)], own))
            for segment, one, own in zip(begun, conditions, noise, strict=True)
        ]

    @torch.no_grad()
    def denoise(self, segments: Sequence[Segment], until: int) -> list[LatentSegment]:
        found = _latents_of(segments)
        for step in range(found[0].step, until):
            found = self.sampler.advance(found, self._velocity(found, step))
        return found

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        training, self.sampler = self.sampler, self.evaluation
        try:
            yield
        finally:
            self.sampler = training

    @torch.no_grad()
    def images(self, segments: Sequence[Segment]) -> list[Pixels]:
        z = torch.stack([one.clean_CHW for one in _latents_of(segments)])
        decoded = self.codec.decode(z / self.shapes.codec_scale + self.shapes.codec_shift, return_dict=False)[0]  # type: ignore[operator]
        pixels = (decoded.float() / 2 + 0.5).clamp(0, 1).mul(255).round().byte()
        return [np.ascontiguousarray(one.permute(1, 2, 0).cpu().numpy()) for one in pixels]

    @torch.no_grad()
    def encode(self, image: Pixels) -> Tensor:
        """Return the latent [C H W] of an image, uint8 [H W 3], in the middle of which it is cropped to a square."""
        square = to_square(image, self.shapes.resolution)
        pixels = torch.from_numpy(square).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        found = self.codec.encode(pixels, return_dict=False)[0]  # type: ignore[operator]
        z: Tensor = found.mode() if hasattr(found, "mode") and not isinstance(found, Tensor) else found
        return (z[0] - self.shapes.codec_shift) * self.shapes.codec_scale

    def velocity(self, prompts: Sequence[str], x_BCHW: Tensor, t: float, guidance_scale: float) -> Tensor:
        """Return the velocity [B C H W] of latents at time t in (0, 1], float32.

        With guidance, the latents without and with their prompts are one batch.
        """
        if guidance_scale == 1:
            return self._predict(prompts, x_BCHW, t, None)
        found = self._predict([*[""] * len(prompts), *prompts], torch.cat((x_BCHW, x_BCHW)), t, None)
        without, prompted = found.chunk(2)
        return sde.guided(without, prompted, guidance_scale)

    def edit_velocity(self, prompts: Sequence[str], source_BCHW: Tensor, x_BCHW: Tensor, t: float) -> Tensor:
        """Return the velocity [B C H W] of edits with these source latents, float32.

        The branches are one batch. The one without source is left out where g_ref 1 removes it from the sum.
        """
        nothing, alone = [""] * len(prompts), self.guidance_reference == 1
        rows = [*([] if alone else nothing), *nothing, *prompts]
        count = 2 if alone else 3
        sources = torch.cat((source_BCHW, source_BCHW) if alone else (source_BCHW * 0, source_BCHW, source_BCHW))
        found = self._predict(rows, x_BCHW.repeat(count, 1, 1, 1), t, sources).chunk(count)
        return sde.guided_edit(found[0], found[-2], found[-1], self.guidance_reference, self.guidance_scale)

    def _predict(self, rows: Sequence[str], x_BCHW: Tensor, t: float, source_BCHW: Tensor | None) -> Tensor:
        """Return the transformer's velocity [B C H W] for these prompts and source latents, float32."""
        time = torch.full((len(x_BCHW),), TRAINING_TIMES * self.shapes.time_scale * t, device=x_BCHW.device)
        conditions, references = self._conditions(rows), edits.references_of(self.transformer)
        sources = torch.zeros_like(x_BCHW) if source_BCHW is None else source_BCHW
        with self._autocast(x_BCHW.device), nullcontext() if references is None else references.given(sources):
            v: Tensor = self.transformer(hidden_states=x_BCHW, timestep=time, return_dict=False, **conditions)[0]
        return v.float()

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

    def _velocity(self, segments: Sequence[LatentSegment], step: int) -> Tensor:
        """Return the velocity of the latents that a step starts from: sampler, update and reference all call this."""
        prompts, x, t = [one.prompt for one in segments], self.sampler.latents(segments, step), self.sampler.time(step)
        sources = [one.source_CHW for one in segments if one.source_CHW is not None]
        if not sources:
            return self.velocity(prompts, x, t, self.guidance_scale)
        assert len(sources) == len(segments), "edits and other images in one batch"
        return self.edit_velocity(prompts, torch.stack(sources), x, t)

    def _conditions(self, prompts: Sequence[str]) -> Conditions:
        """Return the transformer's arguments for these prompts, one row each."""
        rows = [self._read(prompt) for prompt in prompts]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    @torch.no_grad()
    def _read(self, prompt: str) -> Conditions:
        """Return the prompt's arguments, from a cache; alone, so that they do not depend on the other prompts.

        Control tokens within the prompt are read as text.
        """
        if prompt not in self._prompts:
            text = as_text(prompt, self._control)
            self._prompts[prompt] = self.kind.encode(self.pipe, text, self.shapes.text_length, self.device)
            if len(self._prompts) > CACHED_PROMPTS:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(prompt)
        return self._prompts[prompt]

    @property
    def _latent(self) -> tuple[int, int, int]:
        return self.shapes.channels, self.shapes.side, self.shapes.side

    # -- log-probabilities --------------------------------------------------------------------------------------------

    def decisions(self, kind: Modality) -> int:
        return len(self.sampler.decisions) if kind == "image" else 0

    def steps(self, segments: Sequence[Segment]) -> int:
        return sum(step < segments[0].step for step in self.sampler.decisions)

    def terms(self, segments: Sequence[Segment], step: int, *, reference: bool = False) -> Terms:
        found, place = _latents_of(segments), self.sampler.decisions[step]
        velocity, frozen = self._velocity(found, place), None
        if reference:
            with torch.no_grad(), self.reference():
                frozen = self._velocity(found, place)
        return self.sampler.terms(found, place, velocity, frozen)

    def sharing(self, segments: Sequence[Segment]) -> AbstractContextManager[None]:
        return nullcontext()  # texts are encoded by frozen encoders, and kept

    # -- what is trained ----------------------------------------------------------------------------------------------

    def add_adapters(self, *, rank: int, alpha: int, targets: Sequence[str], seed: int, base: str) -> None:
        """Train low-rank adapters instead of the weights (see `Lora`); `base` is where these weights come from.

        In bfloat16 the linear layers of the blocks are stored in it: half of the memory, and the same results. Raises
        SettingsError for a target that is not a linear layer.
        """
        if self.dtype == "bfloat16":  # as autocast would cast these frozen weights in every product
            for block in blocks_of(self.transformer):
                for layer in block.modules():
                    if isinstance(layer, nn.Linear):
                        layer.bfloat16()
        self._lora = Lora(self.module, rank=rank, alpha=alpha, targets=targets, seed=seed, base=base)

    def keep_reference(self) -> None:
        if self._lora is None:
            self._reference = copy.deepcopy(self.module).requires_grad_(False)

    @contextmanager
    def reference(self) -> Iterator[None]:
        if self._lora is not None:
            with self._lora.disabled():
                yield
            return
        assert self._reference is not None, "keep_reference was not called"
        trained, self.module = self.module, self._reference
        try:
            yield
        finally:
            self.module = trained

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("image", tuple(p for p in self.module.parameters() if p.requires_grad))]

    def units(self) -> list[tuple[nn.Module, tuple[nn.Module, ...]]]:
        models = [self.module] if self._reference is None else [self.module, self._reference]
        return [(model, tuple(blocks_of(model))) for model in models]

    def blank(self, kind: Modality) -> LatentSegment:
        assert kind == "image", "there is no text"
        taken = self.sampler.decisions[0] + 1
        latents = torch.zeros(taken + 1, *self._latent, device=self.device)
        return LatentSegment(Condition(""), latents, latents.new_zeros(taken), latents[0], latents[:0])

    def activation_bytes(self, rollouts: int, *, checkpointing: bool) -> int:
        return memory.activation_bytes(
            self.kind.transformer,
            self.config,
            self._latent,
            self._conditions([""]),
            rollouts=rollouts,
            branches=self._branches,
            checkpointing=checkpointing,
            dtype=self.dtype,
        )

    @property
    def _branches(self) -> int:
        """The most rows of the transformer's batch for one image."""
        edited = 2 if self.guidance_reference == 1 else 3
        return max(1 + (self.guidance_scale != 1), 0 if edits.references_of(self.transformer) is None else edited)

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """Write a pipeline in diffusers' layout, which `load` and diffusers read.

        The weights of adapters are merged into those of the layers, and the directory ADAPTER has them alone.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.pipe.save_config(directory)
        for name in ("vae", "scheduler", *self.kind.encoders, *self.kind.tokenizers):
            getattr(self.pipe, name).save_pretrained(directory / name)
        folder = directory / "transformer"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(dict(self.config), indent=2) + "\n")
        own, added = edits.split(self._saved_state("image"))
        write_weights(own, folder, WEIGHTS)
        if added:
            edits.save(added, directory / edits.EDITS)
        if self._lora is not None:
            self._save_adapters(self._lora, directory)

    def _save_adapters(self, lora: Lora, directory: Path) -> None:
        lora.save(directory / ADAPTER)

    def _saved_state(self, part: str) -> dict[str, Tensor]:
        """Return the weights of one part of the module, with those of adapters merged into them."""
        state = state_of(self.module) if self._lora is None else self._lora.merged()
        if self.transformer is self.module:
            return state
        return {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """Return the blocks of a transformer."""
    blocks = model.transformer_blocks
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def _latents_of(segments: Sequence[Segment]) -> list[LatentSegment]:
    found = [segment for segment in segments if isinstance(segment, LatentSegment)]
    assert len(found) == len(segments), "images of this policy"
    assert len({one.step for one in found}) <= 1, "images at different steps"
    return found
