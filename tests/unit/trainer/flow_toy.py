"""A flow policy without a network worth its name: velocities are linear in latent, time and prompt; answers are short.

It has everything of the real one but its size: guidance, an SDE window, latents with their log-probabilities, a closed
KL, text of several lengths, and two parts that train. Suffixes: B rollouts, C H W of a latent, E = C H W, S tokens.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from synod.contracts import Pixels
from trainer.policy.base import ParameterGroup, Terms
from trainer.policy.flow import sde
from trainer.policy.flow.segments import LatentSegment, Sampler, normals
from trainer.types import Condition, Modality, Query, Seed, Segment

SHAPE = (1, 2, 3)  # C H W
WORDS = 5  # the last one ends an answer
LONGEST = 4


@dataclass(frozen=True, slots=True, eq=False)
class ToyText:
    kind: ClassVar[Modality] = "text"
    step: ClassVar[int] = 1
    prompt: str
    ids_S: Tensor
    logp_S: Tensor
    text: str


class Velocity(nn.Module):
    """v = A x + t b + P prompt; the empty prompt is zeros."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator) / 3)

        self.of_x, self.of_t, self.of_prompt = (
            parameter(elements, elements),
            parameter(elements),
            parameter(elements, 4),
        )

    def forward(self, x_BCHW: Tensor, t: float, prompt_B4: Tensor) -> Tensor:
        flat = x_BCHW.flatten(1) @ self.of_x.T + t * self.of_t + prompt_B4 @ self.of_prompt.T
        return flat.reshape(x_BCHW.shape)


class FlowToy:
    """`learner_guidance` other than `guidance` plants a fault: another policy learns than the one that samples."""

    def __init__(self, sampler: Sampler, guidance: float = 3.0, learner_guidance: float | None = None) -> None:
        self.sampler, self.guidance = sampler, guidance
        self.learner_guidance = guidance if learner_guidance is None else learner_guidance
        self.velocity, self.words = Velocity(int(np.prod(SHAPE))), nn.Linear(4, WORDS)
        nn.init.zeros_(self.words.weight)
        nn.init.zeros_(self.words.bias)
        self.module: nn.Module = nn.ModuleDict({"velocity": self.velocity, "words": self.words})
        self._frozen: nn.Module | None = None

    @property
    def image_steps(self) -> int:
        return self.sampler.steps

    def to(self, device: torch.device) -> None:
        self.module.to(device)

    # -- images -------------------------------------------------------------------------------------------------------

    def start(self, prompts: Sequence[str], seeds: Sequence[Seed]) -> list[LatentSegment]:
        noise = normals(seeds, 1, (self.sampler.steps + 1, *SHAPE)).to(next(self.module.parameters()).dtype)
        return self.sampler.start([Condition(prompt) for prompt in prompts], noise)

    def edit(self, conditions: Sequence[Condition], seeds: Sequence[Seed]) -> list[LatentSegment]:
        begun = self.start([one.text for one in conditions], seeds)
        return [replace(segment, condition=one) for segment, one in zip(begun, conditions, strict=True)]

    @torch.no_grad()
    def denoise(self, segments: Sequence[Any], until: int) -> list[LatentSegment]:
        while segments[0].step < until:
            segments = self.sampler.advance(segments, self._guided(segments, segments[0].step, self.guidance))
        return list(segments)

    def _guided(self, segments: Sequence[LatentSegment], step: int, guidance: float) -> Tensor:
        x, t = self.sampler.latents(segments, step), self.sampler.time(step)
        prompts = torch.stack([_of_condition(segment.condition) for segment in segments]).to(x.dtype)
        return sde.guided(self.velocity(x, t, torch.zeros_like(prompts)), self.velocity(x, t, prompts), guidance)

    def images(self, segments: Sequence[Any]) -> list[Pixels]:
        colors = [torch.sigmoid(segment.clean_CHW[0, 0]).numpy() for segment in segments]
        return [np.broadcast_to((255 * color).astype(np.uint8), (2, 2, 3)).copy() for color in colors]

    # -- answers ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def answer(self, queries: Sequence[Query], seeds: Sequence[Seed]) -> list[ToyText]:
        found = []
        for query, seed in zip(queries, seeds, strict=True):
            logp = self._words(query.text)
            drawn = np.random.default_rng([*seed, 0]).choice(WORDS, LONGEST, p=logp.double().softmax(-1).numpy())
            ends = np.flatnonzero(drawn == WORDS - 1)
            ids = torch.from_numpy(drawn[: ends[0] + 1] if len(ends) else drawn)
            found.append(ToyText(query.text, ids, logp[ids], "x" * len(ids)))
        return found

    def _words(self, text: str) -> Tensor:
        logits: Tensor = self.words(vector(text).to(self.words.weight.dtype))
        return logits.log_softmax(-1)

    # -- learning -----------------------------------------------------------------------------------------------------

    def evaluating(self) -> AbstractContextManager[None]:
        return nullcontext()

    def decisions(self, kind: Modality) -> int:
        return LONGEST if kind == "text" else len(self.sampler.decisions)

    def steps(self, segments: Sequence[Segment]) -> int:
        return 1 if segments[0].kind == "text" else len(self.sampler.decisions)

    def terms(self, segments: Sequence[Any], step: int, *, reference: bool = False) -> Terms:
        if segments[0].kind == "text":
            new, old, mask = self._text_terms(segments)
            if not reference:
                return Terms(new, old, mask)
            with torch.no_grad(), self.reference():
                return Terms(new, old, mask, reference_BD=self._text_terms(segments)[0])
        at = self.sampler.decisions[step]
        velocity, far = self._guided(segments, at, self.learner_guidance), None
        if reference:
            with torch.no_grad(), self.reference():
                far = self._guided(segments, at, self.learner_guidance)
        return self.sampler.terms(segments, at, velocity, far)

    def _text_terms(self, segments: Sequence[ToyText]) -> tuple[Tensor, Tensor, Tensor]:
        new = [self._words(segment.prompt)[segment.ids_S] for segment in segments]
        lengths = torch.tensor([len(segment.ids_S) for segment in segments])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        pad = nn.utils.rnn.pad_sequence
        return pad(new, batch_first=True), pad([s.logp_S for s in segments], batch_first=True), mask

    def sharing(self, segments: Sequence[Any]) -> AbstractContextManager[None]:
        return nullcontext()

    def keep_reference(self) -> None:
        self._frozen = copy.deepcopy(self.module).requires_grad_(False)

    @contextmanager
    def reference(self) -> Iterator[None]:
        assert isinstance(self._frozen, nn.ModuleDict)
        own = self.velocity, self.words
        self.velocity, self.words = self._frozen["velocity"], self._frozen["words"]
        try:
            yield
        finally:
            self.velocity, self.words = own

    def parameter_groups(self) -> list[ParameterGroup]:
        return [
            ParameterGroup("text", tuple(self.words.parameters())),
            ParameterGroup("image", tuple(self.velocity.parameters())),
        ]

    def units(self) -> list[tuple[nn.Module, tuple[nn.Module, ...]]]:
        return [(self.module, ())]

    def blank(self, kind: Modality) -> Segment:
        raise NotImplementedError

    def activation_bytes(self, rollouts: int, *, checkpointing: bool) -> int:
        return rollouts * 4 * int(np.prod(SHAPE))

    def save(self, directory: Path) -> None:
        raise NotImplementedError


def _of_condition(condition: Condition) -> Tensor:
    mean = 0.0 if condition.source is None else float(condition.source.mean()) / 255
    return vector(condition.text) + mean


def vector(text: str) -> Tensor:
    """Four numbers of a text."""
    return torch.from_numpy(np.frombuffer(hashlib.sha256(text.encode()).digest()[:4], np.uint8) / 255 - 0.5).float()
