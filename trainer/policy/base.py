"""What the trainer asks of a policy. A decision is a token; `logprobs` masks what was not one.

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

    Randomness comes in as uniforms in (0, 1), so a rollout depends on nothing but weights, prompt and uniforms.
    """

    module: nn.Module  # all that trains

    @property
    def positions(self) -> int:
        """N, the tokens of an image."""
        ...

    def reason(self, query: Query, uniform_BS: Tensor) -> list[TextSegment]:
        """B answers to one query, of at most S tokens each."""
        ...

    def begin(self, prompts: Sequence[str], uniform_BT2N: Tensor) -> list[ImageSegment]:
        """Fully masked images, one a prompt."""
        ...

    def denoise(self, segments: Sequence[ImageSegment], until: int) -> list[ImageSegment]:
        """The segments, all at the same step, taken on to step `until` <= T."""
        ...

    def images(self, segments: Sequence[ImageSegment]) -> list[Pixels]:
        """The last full draw of each, decoded to uint8 [H W 3]."""
        ...

    def steps(self, segments: Sequence[Segment]) -> int:
        """How many calls of `logprobs` cover all decisions: 1 for texts, T for finished images."""
        ...

    def logprobs(self, segments: Sequence[Segment], step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(new_BD, old_BD, mask_BD) of one step, for segments of one kind; new_BD carries the gradient.

        Images: under the guided distribution, which is the policy. mask_BD is True where something was decided.
        """
        ...

    def save(self, directory: Path) -> None:
        """Write a model directory that the same loader reads."""
        ...
