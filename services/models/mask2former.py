"""Instance segmentation by Mask2Former with GenEval's own pipeline (Ghosh et al. 2023; mmdet's test configuration).

transformers' processor squashes to 384 x 384 and keeps one class a query; GenEval's detector keeps the aspect ratio
within 1333 x 800, ranks all (query, class) pairs and rescales logits, not masks. So both ends are ours. The weights on
the hub are Meta's, not mmdet's: scores differ from GenEval's even with an equal pipeline.
Shapes: N images, Q queries, C classes, h w the logits' grid, H W the image. `padded`, `inner` and `outer` are the
(height, width) the model saw, of the image within it, and of the image as given.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate, pad
from transformers import Mask2FormerForUniversalSegmentation

from services.models import pretrained
from services.models.cache import Device, shared
from services.models.images import by_shape, check_finite
from services.models.types import Box, Detection, box_of, within
from synod.contracts import Pixels

LONG_SIDE, SHORT_SIDE, STRIDE = 1333, 800, 32
MAX_PAIRS = 100
_MEAN = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
_STD = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
# GenEval's names for COCO's classes where a checkpoint's labels are spelled otherwise.
_GENEVAL_NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}


def resized(height: int, width: int) -> tuple[int, int]:
    """Return the largest size (height, width) of the same ratio within 1333 x 800."""
    scale = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


class Mask2Former:
    """Up to 100 detections an image, one for each of the best (query, class) pairs."""

    def __init__(self, folder: Path, device: Device | str) -> None:
        self._model: Any = pretrained.load(Mask2FormerForUniversalSegmentation, folder, device)
        labels: dict[int, str] = self._model.config.id2label
        self.class_names = tuple(_GENEVAL_NAMES.get(labels[i], labels[i]) for i in range(len(labels)))

    @torch.inference_mode()
    def detect(
        self, images: Sequence[Pixels], classes: Collection[str] | None = None, least: float = 0.0
    ) -> list[list[Detection]]:
        """Return detections by class probability; their score is that times the mean sigmoid of the mask.

        Masks are made one at a time, and only of the pairs that can score `least`, so that memory at the image's
        size is that of one mask.
        """
        found: dict[int, list[Detection]] = {}
        wanted = torch.tensor([classes is None or name in classes for name in self.class_names])
        for group in by_shape(images):
            height, width, _ = images[group[0]].shape
            inner = resized(height, width)
            output = self._model(pixel_values=self._normalised([images[i] for i in group], inner))
            check_finite(output.class_queries_logits, output.masks_queries_logits)
            padded = (_padded(inner[0]), _padded(inner[1]))
            for i, logits, masks in zip(group, output.class_queries_logits, output.masks_queries_logits, strict=True):
                pairs = self._pairs(logits.float(), wanted, least)
                sizes = (padded, inner, (height, width))
                found[i] = [d for d in self._objects(pairs, masks.float(), *sizes) if np.float32(d.score) >= least]
        return [found[i] for i in range(len(images))]

    def _normalised(self, images: Sequence[Pixels], inner: tuple[int, int]) -> torch.Tensor:
        batch = torch.cat([self._resized(image, inner) for image in images])
        batch = (batch - _MEAN.to(batch.device)) / _STD.to(batch.device)
        batch = pad(batch, (0, _padded(inner[1]) - inner[1], 0, _padded(inner[0]) - inner[0]))
        return batch.to(self._model.dtype)

    def _resized(self, image: Pixels, inner: tuple[int, int]) -> torch.Tensor:
        """Return [1 3 h w], one image at a time: in float32 it takes 12 bytes a pixel of the image as given."""
        pixels = torch.tensor(image).to(self._model.device)[None].permute(0, 3, 1, 2)
        return interpolate(pixels.float(), inner, mode="bilinear")

    def _pairs(self, logits: torch.Tensor, wanted: torch.Tensor, least: float) -> list[tuple[int, int, float]]:
        """Return (query, class, probability) of the best pairs of `logits` [Q C+1], in classes `wanted` [C]."""
        probabilities = logits.softmax(dim=-1)[:, :-1].flatten().cpu()  # the last class is "no object"
        best, pairs = probabilities.topk(min(MAX_PAIRS, len(probabilities)))
        kept = wanted[pairs % len(wanted)] & (best >= least)
        best, pairs = best[kept], pairs[kept]
        return list(zip((pairs // len(wanted)).tolist(), (pairs % len(wanted)).tolist(), best.tolist(), strict=True))

    def _objects(
        self,
        pairs: Sequence[tuple[int, int, float]],
        mask_logits: torch.Tensor,
        padded: tuple[int, int],
        inner: tuple[int, int],
        outer: tuple[int, int],
    ) -> list[Detection]:
        """Return the pairs of one image whose masks, of `mask_logits` [Q h w], are not empty."""
        shapes: dict[int, _Shape | None] = {}
        found: list[Detection] = []
        for query, label, probability in pairs:
            if query not in shapes:
                shapes[query] = _shape(mask_logits[query][None, None], padded, inner, outer)
            if (shape := shapes[query]) is not None:
                score = float(np.float32(probability) * shape.quality)
                found.append(Detection(self.class_names[label], score, shape.box, shape.bits))
        return found


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a query's mask is to all its detections; `quality` is the mean of its sigmoid, at most 1."""

    quality: np.float32
    box: Box
    bits: NDArray[np.uint8]


def _shape(
    logits: torch.Tensor, padded: tuple[int, int], inner: tuple[int, int], outer: tuple[int, int]
) -> _Shape | None:
    """Return the mask of `logits` [1 1 h w] at the image's size; None where it is empty."""
    large = interpolate(logits, padded, mode="bilinear")[:, :, : inner[0], : inner[1]]
    large = interpolate(large, outer, mode="bilinear")[0, 0]
    positive = large > 0
    quality = (large.sigmoid_() * positive).sum() / (positive.sum() + 1e-6)
    mask = positive.cpu().numpy()
    if not mask.any():
        return None
    box = box_of(mask)
    return _Shape(np.float32(quality.clamp(max=1).item()), box, np.packbits(within(mask, box)))


def _padded(side: int) -> int:
    return -(-side // STRIDE) * STRIDE


def load(source: str, device: Device | str) -> Mask2Former:
    """Return the model of a directory or hub id, shared per process."""
    return shared("mask2former", source, device, lambda folder: Mask2Former(folder, device))
