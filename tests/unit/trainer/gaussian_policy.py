"""Another family of policies: a Gaussian over one color, without text, with a closed-form KL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from synod.contracts import Pixels, ScoreItem
from trainer.policy.base import ParameterGroup, Terms
from trainer.types import Modality, Query, Seed, Segment

STEPS, SIGMA = 4, 0.5
TARGET = (0.8, 0.3, 0.5)  # the color of the highest reward


@dataclass(frozen=True)
class ColorSegment:
    """`drawn_T3`: a draw of each step; the color is the sigmoid of their mean."""

    kind: ClassVar[Modality] = "image"
    text: ClassVar[str] = ""
    prompt: str
    seed: Seed
    drawn_T3: Tensor
    logp_T3: Tensor

    @property
    def step(self) -> int:
        return len(self.drawn_T3)


class Mean(nn.Module):
    """A model that is called as a whole, as FSDP2 needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(3))

    def forward(self) -> Tensor:
        return self.mean * 1.0  # a new tensor: FSDP2 has hooks on outputs


class GaussianPolicy:
    """Draws each step's three numbers from N(mean, SIGMA^2)."""

    image_steps = STEPS

    def __init__(self) -> None:
        self.module: nn.Module = Mean()
        self._frozen = torch.zeros(3)

    @property
    def mean(self) -> Tensor:
        mean: Tensor = self.module()
        return mean

    def to(self, device: torch.device) -> None:
        self.module.to(device)

    def answer(self, queries: Sequence[Query], seeds: Sequence[Seed]) -> Sequence[Segment]:
        raise NotImplementedError("it has no text")

    def start(self, prompts: Sequence[str], seeds: Sequence[Seed]) -> list[ColorSegment]:
        none = torch.zeros(0, 3)
        return [ColorSegment(prompt, seed, none, none) for prompt, seed in zip(prompts, seeds, strict=True)]

    @torch.no_grad()
    def denoise(self, segments: Sequence[Any], until: int) -> list[ColorSegment]:
        continued = []
        for segment in segments:
            noise = torch.from_numpy(np.random.default_rng(segment.seed).standard_normal((STEPS, 3))).float()
            drawn = torch.cat((segment.drawn_T3, self.mean + SIGMA * noise[segment.step : until]))
            continued.append(ColorSegment(segment.prompt, segment.seed, drawn, _logp(self.mean, drawn)))
        return continued

    def images(self, segments: Sequence[Any]) -> list[Pixels]:
        colors = [torch.sigmoid(segment.drawn_T3.mean(0)).numpy() for segment in segments]
        return [np.broadcast_to((255 * color).astype(np.uint8), (2, 2, 3)).copy() for color in colors]

    def evaluating(self) -> AbstractContextManager[None]:
        return nullcontext()

    def decisions(self, kind: Modality) -> int:
        return STEPS * 3

    def steps(self, segments: Sequence[Segment]) -> int:
        return STEPS

    def terms(self, segments: Sequence[Any], step: int, *, reference: bool = False) -> Terms:
        drawn = torch.stack([segment.drawn_T3[step] for segment in segments])
        old = torch.stack([segment.logp_T3[step] for segment in segments])
        mean = self.mean
        kl = ((mean - self._frozen).square() / (2 * SIGMA**2)).expand_as(drawn)
        mask = torch.ones_like(drawn, dtype=torch.bool)
        return Terms(_logp(mean, drawn), old, mask, kl_BD=kl if reference else None)

    def sharing(self, segments: Sequence[Any]) -> AbstractContextManager[None]:
        return nullcontext()

    def keep_reference(self) -> None:
        self._frozen = self.mean.detach().clone()

    @contextmanager
    def reference(self) -> Iterator[None]:
        yield

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("image", tuple(self.module.parameters()))]

    def units(self) -> list[tuple[nn.Module, tuple[nn.Module, ...]]]:
        return [(self.module, ())]

    def blank(self, kind: Modality) -> ColorSegment:
        return ColorSegment("", (0,), torch.zeros(1, 3), torch.zeros(1, 3))

    def activation_bytes(self, rollouts: int, *, checkpointing: bool) -> int:
        return rollouts * 3 * 4

    def save(self, directory: Path) -> None:
        raise NotImplementedError


def _logp(mean: Tensor, drawn: Tensor) -> Tensor:
    distribution = torch.distributions.Normal(mean, SIGMA)
    return torch.as_tensor(distribution.log_prob(drawn))  # type: ignore[no-untyped-call]


def closeness(item: ScoreItem) -> float:
    color = item.pixels()[0, 0] / 255
    return 1.0 - float(np.square(color - np.array(TARGET)).sum())
