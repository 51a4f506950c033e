"""LAION's aesthetic predictor: linear layers in float32 on a CLIP image vector, as its public weights files store
them.

The layers sit at 0, 2, 4, 6 and 7 of a Sequential named `layers`, with dropouts between and no activation:
768-1024-128-64-16-1 for CLIP-L/14. N images, D width of the CLIP.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from services.models import weights
from services.models.cache import frozen, shared
from synod.errors import SettingsError

PLACES: Final = (0, 2, 4, 6, 7)


class Predictor:
    """`rate` gives what people would, about 1 to 10; the layers are affine, so nothing bounds it."""

    def __init__(self, file: Path, device: str) -> None:
        state = weights.read(file)
        weights.check_keys(file, state, [f"layers.{place}.{name}" for place in PLACES for name in ("weight", "bias")])
        shapes = [tuple(state[f"layers.{place}.weight"].shape) for place in PLACES]
        widths = [shape[-1] for shape in shapes] + [1]
        wanted = [(after, before) for before, after in pairwise(widths)]
        if shapes != wanted:
            raise SettingsError(f"{file}: layers of {shapes}; each reads what the one before gives, the last gives 1")
        layers = {str(place): torch.nn.Linear(*pair) for place, pair in zip(PLACES, pairwise(widths), strict=True)}
        module = torch.nn.ModuleDict({"layers": torch.nn.ModuleDict(layers)})
        weights.load_into(module, state, file)
        self._layers = [frozen(layer, device) for layer in layers.values()]
        self._file, self._width, self._device = file, widths[0], device

    @torch.inference_mode()
    def rate(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return [N D] of norm 1 -> [N]. Raises SettingsError for another D than the predictor's."""
        if features.shape[1] != self._width:
            made = f"the CLIP model gives {features.shape[1]} numbers an image"
            raise SettingsError(f"{self._file}: this predictor reads {self._width}, {made}; give the CLIP it is for")
        rows = torch.from_numpy(features).to(self._device)
        for layer in self._layers:
            rows = layer(rows)
        ratings: NDArray[np.float32] = rows[:, 0].cpu().numpy()
        return ratings


def load(source: str, device: str) -> Predictor:
    """Return the predictor of a weights file, shared per process by content."""
    return shared("aesthetic", str(weights.file(source)), device, lambda file: Predictor(file, device))
