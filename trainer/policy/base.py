"""The interface of a policy. A decision is a sampled token; `logprobs` masks other positions.

Suffixes: B rollouts, D decisions of one denoising step (N image positions) or of one text (S tokens), H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from synod.contracts import Pixels
from trainer.types import ImageSegment, Query, Segment, TextSegment


class Policy(Protocol):
    """A unified multimodal model that answers queries in text and draws images step by step.

    Random numbers are arguments, uniforms in (0, 1): a rollout follows from weights, prompt and uniforms.
    """

    module: nn.Module  # the trainable parameters

    @property
    def positions(self) -> int:
        """N, the number of image tokens."""
        ...

    def reason(self, query: Query, uniform_BS: Tensor) -> list[TextSegment]:
        """Sample B answers to one query, of at most S tokens each."""
        ...

    def begin(self, prompts: Sequence[str], uniform_BT2N: Tensor) -> list[ImageSegment]:
        """Return a fully masked image for each prompt."""
        ...

    def denoise(self, segments: Sequence[ImageSegment], until: int) -> list[ImageSegment]:
        """Denoise the segments, all at the same step, up to step `until` <= T."""
        ...

    def images(self, segments: Sequence[ImageSegment]) -> list[Pixels]:
        """Decode the last full draw of each segment to uint8 [H W 3]."""
        ...

    def steps(self, segments: Sequence[Segment]) -> int:
        """Return how many calls of `logprobs` cover all decisions: 1 for texts, T for finished images."""
        ...

    def logprobs(self, segments: Sequence[Segment], step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities (new_BD, old_BD, mask_BD) of one step, for segments of one modality.

        new_BD has the gradient, old_BD is the value at sampling, mask_BD is True at decisions. An image's are those of
        the guided distribution, which is the policy.
        """
        ...

    def save(self, directory: Path) -> None:
        """Write a model directory that the policy's loader reads."""
        ...
