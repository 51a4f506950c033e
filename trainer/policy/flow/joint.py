"""A language model and a flow-matching pipeline as one policy (UniRL-Zero's scenarios 1, 2, 3 and 5).

The words of the language model reach the image through the pipeline's own text encoder: an answer is appended to the
prompt, which works with public weights as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from trainer.policy.base import ParameterGroup, Terms
from trainer.policy.flow.language import Language, TextSegment
from trainer.policy.flow.policy import FlowPolicy, blocks_of
from trainer.types import Modality, Query, Seed, Segment

LANGUAGE: Final = "language"  # in the module, and in a saved directory
IMAGE: Final = "image"
TEXT_STREAM: Final = 0  # of random numbers
_PARTS: Final[tuple[tuple[Modality, str], ...]] = (("text", LANGUAGE), ("image", IMAGE))


class JointPolicy(FlowPolicy):
    """A FlowPolicy that answers queries by a language model.

    `trains` are the modalities whose model is trained; the other one is frozen. The other arguments are a FlowPolicy's.
    """

    def __init__(
        self, model: nn.Module, language: Language, trains: Sequence[Modality], *arguments: Any, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.language, self.trains = language, tuple(trains)
        self.module = nn.ModuleDict({IMAGE: self.module, LANGUAGE: model})
        self._part(IMAGE).requires_grad_("image" in trains)
        self._part(LANGUAGE).requires_grad_("text" in trains)

    @property
    def transformer(self) -> nn.Module:
        return self._part(IMAGE)

    def _part(self, name: str) -> nn.Module:
        assert isinstance(self.module, nn.ModuleDict)
        return self.module[name]

    def answer(self, queries: Sequence[Query], seeds: Sequence[Seed]) -> list[TextSegment]:
        """Sample one answer for each query; equal queries are sampled in one batch."""
        shape = (self.language.max_new_tokens,)
        rows = [np.random.default_rng([*seed, TEXT_STREAM]).random(shape) for seed in seeds]
        uniform = torch.from_numpy(np.stack(rows))
        found: dict[int, TextSegment] = {}
        for query in dict.fromkeys(queries):
            places = [place for place, one in enumerate(queries) if one is query]
            with self._autocast(self.device):
                drawn = self.language.sample(self._part(LANGUAGE), query, uniform[places])
            found |= zip(places, drawn, strict=True)
        return [found[place] for place in range(len(queries))]

    def add_adapters(self, *, rank: int, alpha: int, targets: Sequence[str], seed: int, base: str) -> None:
        """Train low-rank adapters on both models, or on the one that is trained (see `FlowPolicy.add_adapters`)."""
        super().add_adapters(rank=rank, alpha=alpha, targets=targets, seed=seed, base=base)
        for kind, name in _PARTS:
            if kind not in self.trains:
                self._part(name).requires_grad_(False)

    def units(self) -> list[tuple[nn.Module, tuple[nn.Module, ...]]]:
        return [(self.module, tuple(blocks_of(self.transformer)))]

    def decisions(self, kind: Modality) -> int:
        return self.language.max_new_tokens if kind == "text" else super().decisions(kind)

    def steps(self, segments: Sequence[Segment]) -> int:
        return 1 if segments[0].kind == "text" else super().steps(segments)

    def terms(self, segments: Sequence[Segment], step: int, *, reference: bool = False) -> Terms:
        if segments[0].kind == "image":
            return super().terms(segments, step, reference=reference)
        new, old, mask = self._text_logprobs(segments)
        if not reference:
            return Terms(new, old, mask)
        with torch.no_grad(), self.reference():
            return Terms(new, old, mask, reference_BD=self._text_logprobs(segments)[0])

    def _text_logprobs(self, segments: Sequence[Segment]) -> tuple[Tensor, Tensor, Tensor]:
        texts = [segment for segment in segments if isinstance(segment, TextSegment)]
        assert len(texts) == len(segments), "segments of one kind at a time"
        with self._autocast(self.device):
            return self.language.logprobs(self._part(LANGUAGE), texts)

    def parameter_groups(self) -> list[ParameterGroup]:
        found = [ParameterGroup(kind, _trained(self._part(name))) for kind, name in _PARTS]
        return [group for group in found if group.parameters]

    def blank(self, kind: Modality) -> Any:
        return self.language.blank(self.device) if kind == "text" else super().blank(kind)

    def save(self, directory: Path) -> None:
        """Write a pipeline in diffusers' layout, and the language model in its directory LANGUAGE."""
        super().save(directory)
        self.language.save(self._part(LANGUAGE), self._saved_state(LANGUAGE), directory / LANGUAGE)


def _trained(module: nn.Module) -> tuple[nn.Parameter, ...]:
    return tuple(parameter for parameter in module.parameters() if parameter.requires_grad)
