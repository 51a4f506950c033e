"""An exponential moving average of the trained weights, which evaluation and saving use instead of the last ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.distributed import local, part


class Ema:
    """The average of a module's trainable parameters, float32, on their devices. With LoRA, that of the adapters.

    Of a module that is split over ranks it is split, too, and so are the parameters that it changes.

        average <- d average + (1 - d) weight,    d = min(decay, (1 + t) / (10 + t)) at step t = 0, 1, ...

    It starts at the weights of the module. The smaller d of the first steps lets it leave them within a short run: with
    decay .999 alone, the start would still weigh .9 after 100 steps, and .0 with it.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._averages = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after step `step` = 0, 1, ..."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            local(self._averages[name]).lerp_(local(parameter).float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the module the averages inside the block, and afterwards its own weights again, bit for bit."""
        own = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._write(self._averages)
        try:
            yield
        finally:
            self._write(own)

    def to_save(self) -> dict[str, Tensor]:
        """Return the averages by parameter name, for a checkpoint."""
        return dict(self._averages)

    @torch.no_grad()
    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Restore what `to_save` returned. Raises KeyError for a parameter without an average."""
        for name, average in self._averages.items():
            average.copy_(part(saved[name], average))

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
