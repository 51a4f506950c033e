"""GenEval's colour classifier: zero-shot CLIP over ten colours, three templates a class (Ghosh et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from services.models.types import Clip, Detection, within
from services.scorers.geneval.rules import COLORS
from synod.contracts import Pixels
from synod.errors import NonFinite

TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
_GREY = 0x99


class ColorClassifier:
    """The colour's text direction is the normalised mean of its templates' features, made once per class."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._directions: dict[str, NDArray[np.float32]] = {}

    def classify(self, crops: Iterable[Pixels], class_names: Sequence[str]) -> list[str]:
        """Return one of the ten colours for each crop of an object of the class; all crops in one forward.

        Raises NonFinite: the largest of numbers with NaN among them would be the first colour.
        """
        if not class_names:
            return []
        rows = self._clip.image_features(crops)
        logits = np.stack([self._direction(name) @ row for name, row in zip(class_names, rows, strict=True)])
        if not np.isfinite(logits).all():
            raise NonFinite(
                "the colour model's features are not finite; serve it with dtype = 'float32', or check its weights"
            )
        return [COLORS[i] for i in logits.argmax(axis=1)]

    def _direction(self, name: str) -> NDArray[np.float32]:
        if name not in self._directions:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            features = self._clip.text_features(texts).reshape(len(COLORS), len(TEMPLATES), -1).mean(axis=1)
            self._directions[name] = features / np.linalg.norm(features, axis=1, keepdims=True)
        return self._directions[name]


def cutout(image: Pixels, detection: Detection) -> Pixels:
    """Crop the object to its box and paint everything outside its mask #999."""
    return np.where(detection.mask[..., None], within(image, detection.box), np.uint8(_GREY))
