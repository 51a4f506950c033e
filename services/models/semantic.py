"""Objects from semantic segmentation: every 8-connected component of a class's pixels is one detection.

Shapes: N images, C classes, h w the logits' grid, H W the image.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from services.models import pretrained
from services.models.cache import Device, shared
from services.models.image_memo import MEMO
from services.models.images import by_shape, check_finite, pixel_values
from services.models.types import Detection
from synod.contracts import Pixels

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)
_BACKGROUND = "background"
MIN_AREA = 12  # pixels of an object; smaller components are noise
_PIXELS_AT_ONCE: Final = 2**20  # whose probabilities are made together


class Segmenter:
    """Class logits per pixel, at the image's own size."""

    def __init__(self, folder: Path, device: Device | str) -> None:
        self._processor: Any = AutoImageProcessor.from_pretrained(folder)
        self._model: Any = pretrained.load(AutoModelForSemanticSegmentation, folder, device, heads=True)
        labels: dict[int, str] = self._model.config.id2label
        self.labels = tuple(labels[i] for i in range(len(labels)))
        self.part_of: dict[str, str] = getattr(self._model.config, "part_of", None) or {}

    @torch.inference_mode()
    def logits(self, images: Sequence[Pixels]) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield for each image, in any order, its index and float32 [H W C], upsampled bilinearly, on the device.

        Images are yielded one at a time, because these are 4 C bytes a pixel.
        """
        for group in by_shape(images):
            batch = pixel_values(self._processor, [images[i] for i in group], self._model)
            logits_of = self._model(pixel_values=batch).logits
            check_finite(logits_of)
            logits_of = logits_of.float()
            logits_of = logits_of.contiguous(memory_format=torch.channels_last)  # a tenth of the time to upsample
            for i, logits in zip(group, logits_of.split(1), strict=True):
                large = torch.nn.functional.interpolate(logits, images[i].shape[:2], mode="bilinear")[0]
                yield i, large.permute(1, 2, 0)


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
        self._ever_wanted: set[str] = set()

    def detect(
        self, images: Sequence[Pixels], classes: Collection[str] | None = None, least: float = 0.0
    ) -> list[list[Detection]]:
        """Return components of at least `min_area` pixels; score = the class's mean probability over the component.

        Where images are remembered (`services.models.image_memo`), an image not seen before is searched for all classes
        that this detector was ever asked for, so that the process's other scorers find theirs.
        """
        wanted = [name for name in self.class_names if classes is None or name in classes]
        self._ever_wanted.update(wanted)
        searched = [name for name in self.class_names if name in (self._ever_wanted if MEMO.enabled else wanted)]
        found: list[dict[str, list[Detection]]] = [MEMO.of(image, self) for image in images]
        new = [i for i, known in enumerate(found) if not known.keys() >= set(wanted)]
        for k, logits in self._segmenter.logits([images[i] for i in new]):
            found[new[k]].update(self._objects(logits, searched))
        return [[d for name in wanted for d in known[name] if np.float32(d.score) >= least] for known in found]

    @torch.inference_mode()
    def _objects(self, logits: torch.Tensor, wanted: Sequence[str]) -> dict[str, list[Detection]]:
        """Return the detections by class. Probabilities are computed only within components."""
        winner: NDArray[np.int32] = logits.argmax(dim=-1).int().cpu().numpy()
        extents = ndimage.find_objects(winner + 1, max_label=logits.shape[-1])
        found: dict[str, list[Detection]] = {name: [] for name in wanted}
        for name in wanted:
            members = self._members[name]
            present = [extents[member] for member in members if extents[member] is not None]
            if not present:
                continue
            inside = _around(present)
            components, _ = ndimage.label(np.isin(winner[inside], members), structure=_EIGHT_CONNECTED)
            for number, place in enumerate(ndimage.find_objects(components), start=1):
                component = components[place] == number
                if np.count_nonzero(component) < self._min_area:
                    continue
                rows, columns = (slice(a.start + b.start, a.start + b.stop) for a, b in zip(inside, place, strict=True))
                box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
                score = _score(logits[rows, columns], component, members)
                found[name].append(Detection.of(name, score, box, component))
        return found


def _score(logits: torch.Tensor, component: NDArray[np.bool_], members: Sequence[int]) -> float:
    """Return the mean over the component's pixels [h w] of the classes' summed probability, of `logits` [h w C]."""
    rows = max(1, _PIXELS_AT_ONCE // component.shape[1])
    parts = []
    for start in range(0, len(component), rows):
        part = slice(start, start + rows)
        own = logits[part][torch.from_numpy(component[part]).to(logits.device)]
        parts.append(own.softmax(dim=-1)[:, members].sum(dim=-1))
    return min(float(torch.cat(parts).mean()), 1.0)


def _around(extents: Sequence[tuple[slice, slice]]) -> tuple[slice, slice]:
    """Return the smallest rectangle around all."""
    rows, columns = (
        slice(min(e.start for e in axis), max(e.stop for e in axis)) for axis in zip(*extents, strict=True)
    )
    return rows, columns


def load(source: str, device: Device | str, min_area: int = MIN_AREA) -> SemanticDetector:
    """Return the detector of a model directory or hub id; it and its segmenter are shared per process."""

    def build(folder: Path) -> SemanticDetector:
        return SemanticDetector(shared("semantic", source, device, lambda _: Segmenter(folder, device)), min_area)

    return shared(f"semantic, min_area {min_area}", source, device, build)
