"""Objects from semantic segmentation: every 8-connected component of a class's pixels is one detection.

Shapes: N pictures, C classes, h w the logits' grid, H W the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from services.models.cache import Device, frozen, shared
from services.models.detector import Detection, Mask, box_of
from services.models.images import by_shape, pixel_values
from synod.contracts import Pixels

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)
_BACKGROUND = "background"


class Segmenter:
    """Class probabilities per pixel, at the picture's own size."""

    def __init__(self, folder: Path, device: Device | str) -> None:
        self._processor: Any = AutoImageProcessor.from_pretrained(folder)
        self._model: Any = frozen(AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32), device)
        labels: dict[int, str] = self._model.config.id2label
        self.labels = tuple(labels[i] for i in range(len(labels)))
        self.part_of: dict[str, str] = getattr(self._model.config, "part_of", None) or {}

    @torch.inference_mode()
    def probabilities(self, images: Sequence[Pixels]) -> list[NDArray[np.float32]]:
        """[C H W] per picture: the logits, upsampled bilinearly to the picture, then softmax over classes."""
        maps: dict[int, NDArray[np.float32]] = {}
        for group in by_shape(images):
            batch = pixel_values(self._processor, [images[i] for i in group], self._model)
            logits_of = self._model(pixel_values=batch).logits.float()
            logits_of = logits_of.contiguous(memory_format=torch.channels_last)  # a tenth of the time to upsample
            for i, logits in zip(group, logits_of.split(1), strict=True):
                large = torch.nn.functional.interpolate(logits, images[i].shape[:2], mode="bilinear")[0]
                maps[i] = large.permute(1, 2, 0).softmax(dim=-1).permute(2, 0, 1).cpu().numpy()
        return [maps[i] for i in range(len(images))]


class SemanticDetector:
    """A part's pixels (`part_of` in config.json, as {"face": "person"}) belong to its whole and are their own class."""

    def __init__(self, segmenter: Segmenter, min_area: int) -> None:
        self._segmenter = segmenter
        self._min_area = min_area
        self.class_names = tuple(label for label in segmenter.labels if label != _BACKGROUND)
        parts = segmenter.part_of.items()
        self._members = {
            name: [segmenter.labels.index(n) for n in (name, *(part for part, whole in parts if whole == name))]
            for name in self.class_names
        }

    def detect(self, images: Sequence[Pixels]) -> list[list[Detection]]:
        """Components of at least `min_area` pixels; score = the class's mean probability over the component."""
        return [self._objects(probabilities) for probabilities in self._segmenter.probabilities(images)]

    def _objects(self, probabilities: NDArray[np.float32]) -> list[Detection]:
        winner = np.moveaxis(probabilities, 0, -1).argmax(axis=-1)
        present = set(np.flatnonzero(np.bincount(winner.ravel())).tolist())
        found: list[Detection] = []
        for name, members in self._members.items():
            if not present.intersection(members):
                continue
            components, _ = ndimage.label(np.isin(winner, members), structure=_EIGHT_CONNECTED)
            probability = probabilities[members].sum(axis=0)
            areas = np.bincount(components.ravel())
            for number in np.flatnonzero(areas[1:] >= self._min_area) + 1:  # component 0 is everything else
                mask: Mask = components == number
                score = min(float(probability[mask].mean()), 1.0)
                found.append(Detection(name, score, box_of(mask), mask))
        return found


def load(source: str, device: Device | str, min_area: int) -> SemanticDetector:
    """The detector of a model directory or hub id; the segmenter is shared per process."""
    segmenter = shared("semantic", source, device, lambda folder: Segmenter(folder, device))
    return SemanticDetector(segmenter, min_area)
