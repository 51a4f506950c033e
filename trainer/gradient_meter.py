"""How much the gradients of a step's groups agree, measured while they add up."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor, nn

from trainer.algorithms.gradient_noise import pair_cosine
from trainer.distributed import Ranks
from trainer.types import MODALITIES, Modality

SAMPLE: Final = 16384  # numbers of each parameter


class GradientMeter:
    """Takes a group's gradient as the change of what has added up, at up to SAMPLE numbers of each parameter.

    The numbers are spread evenly and weighted by how many they stand for. A copy of a whole gradient would take as
    much memory as the trained weights; this takes four copies of the sample, 0.1 GB for Show-o 512.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._strides = [_stride(parameter) for parameter in self._parameters]
        self._before = self._read()
        self._sums = {modality: torch.zeros_like(self._before) for modality in MODALITIES}
        self._squares: list[tuple[int, Modality, float]] = []

    def add(self, group: int, modality: Modality) -> None:
        """Take what was added since the last call as the gradient of one group's modality."""
        now = self._read()
        own = now - self._before
        self._before = now
        self._sums[modality] += own
        self._squares.append((group, modality, float(own.double().square().sum())))

    def exchange(self, ranks: Ranks) -> None:
        """Take what the other ranks have measured; every rank must call it, after its last `add`."""
        self._squares = sorted(tuple(one) for part in ranks.gather_all(self._squares) for one in part)
        for one in self._sums.values():
            ranks.sum(one)

    def cosines(self) -> dict[Modality, float | None]:
        """Return `pair_cosine` of each modality over the groups; those without a gradient are left out.

        Squares are added in the order of the groups.
        """
        return {modality: self._cosine(modality) for modality in MODALITIES}

    def _cosine(self, modality: Modality) -> float | None:
        squares = [square for _, own, square in self._squares if own == modality and square > 0]
        return pair_cosine(float(self._sums[modality].double().square().sum()), math.fsum(squares), len(squares))

    @torch.no_grad()
    def _read(self) -> Tensor:
        parts = [
            math.sqrt(stride) * (torch.zeros_like(p) if p.grad is None else p.grad).flatten()[::stride].float()
            for p, stride in zip(self._parameters, self._strides, strict=True)
        ]
        return torch.cat(parts)


def _stride(parameter: nn.Parameter) -> int:
    """Return every how many numbers one is taken: a step that visits all columns of a matrix."""
    stride, columns = math.ceil(parameter.numel() / SAMPLE), parameter.shape[-1] if parameter.dim() else 1
    while math.gcd(stride, columns) > 1:
        stride += 1
    return stride
