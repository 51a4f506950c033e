"""The images that Show-o samples. Suffixes: T denoising steps, N image positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trainer.types import Modality


@dataclass(frozen=True, slots=True, eq=False)
class ImageSegment:
    """An image after `step` denoising steps, with everything needed to continue.

    codes_TN    int64, the full draw of each step; codes_TN[-1] is the preview, or in the end the image
    masked_TN   bool, True where step t sampled: only these positions are decisions
    logp_TN     float32, guided log-probability of codes_TN under the policy that sampled it; 0 where it was not scored
    remasked_N  bool, the positions masked for the next step (after re-masking)
    uniform_T2N float32 in (0, 1), every random number of the whole trajectory, drawn in advance
    num_cut     how many tokens of the prompt did not fit its text block
    """

    kind: ClassVar[Modality] = "image"
    text: ClassVar[str] = ""
    prompt: str
    codes_TN: Tensor
    masked_TN: Tensor
    logp_TN: Tensor
    remasked_N: Tensor
    uniform_T2N: Tensor
    num_cut: int = 0

    @property
    def step(self) -> int:
        return len(self.codes_TN)
