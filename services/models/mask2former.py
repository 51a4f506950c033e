"""Instance segmentation by Mask2Former with GenEval's own pipeline (Ghosh et al. 2023; mmdet's test configuration).

transformers' processor squashes to 384 x 384 and keeps one class a query; GenEval's detector keeps the aspect ratio
within 1333 x 800, ranks all (query, class) pairs and rescales logits, not masks. So both ends are ours. The weights on
the hub are Meta's, not mmdet's: scores differ from GenEval's even with an equal pipeline.
Shapes: N pictures, Q queries, C classes, h w the logits' grid, H W the picture. `padded`, `inner` and `outer` are the
(height, width) the model saw, of the picture within it, and of the picture as given.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate, pad
from transformers import Mask2FormerForUniversalSegmentation

from services.models import pretrained
from services.models.cache import Device, shared
from services.models.detector import Detection, box_of
from services.models.images import by_shape
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
    """The largest size (height, width) of the same ratio within 1333 x 800."""
    scale = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


class Mask2Former:
    """Up to 100 detections a picture, one for each of the best (query, class) pairs."""

    def __init__(self, folder: Path, device: Device | str) -> None:
        self._model: Any = pretrained.load(Mask2FormerForUniversalSegmentation, folder, device)
        labels: dict[int, str] = self._model.config.id2label
        self.class_names = tuple(_GENEVAL_NAMES.get(labels[i], labels[i]) for i in range(len(labels)))

    @torch.inference_mode()
    def detect(self, images: Sequence[Pixels], classes: Collection[str] | None = None) -> list[list[Detection]]:
        """Detections in the order of their class probability; score = that times the mask's mean sigmoid."""
        found: dict[int, list[Detection]] = {}
        for group in by_shape(images):
            height, width, _ = images[group[0]].shape
            inner = resized(height, width)
            batch = torch.from_numpy(np.stack([images[i] for i in group])).to(self._model.device)
            output = self._model(pixel_values=self._normalised(batch.permute(0, 3, 1, 2), inner))
            padded = (_padded(inner[0]), _padded(inner[1]))
            for i, logits, masks in zip(group, output.class_queries_logits, output.masks_queries_logits, strict=True):
                found[i] = self._objects(logits.float(), masks.float(), padded, inner, (height, width))
        return [[d for d in found[i] if classes is None or d.class_name in classes] for i in range(len(images))]

    def _normalised(self, images: torch.Tensor, inner: tuple[int, int]) -> torch.Tensor:
        batch = interpolate(images.float(), inner, mode="bilinear")
        batch = (batch - _MEAN.to(batch.device)) / _STD.to(batch.device)
        batch = pad(batch, (0, _padded(inner[1]) - inner[1], 0, _padded(inner[0]) - inner[0]))
        return batch.to(self._model.dtype)

    def _objects(
        self,
        logits: torch.Tensor,
        mask_logits: torch.Tensor,
        padded: tuple[int, int],
        inner: tuple[int, int],
        outer: tuple[int, int],
    ) -> list[Detection]:
        """`logits` [Q C+1] and `mask_logits` [Q h w] of one picture."""
        probabilities = logits.softmax(dim=-1)[:, :-1].flatten()  # the last class is "no object"
        best, pairs = probabilities.topk(min(MAX_PAIRS, len(probabilities)))
        queries, classes = pairs // len(self.class_names), pairs % len(self.class_names)
        kept, places = torch.unique(queries, return_inverse=True)
        large = interpolate(mask_logits[kept][None], padded, mode="bilinear")[:, :, : inner[0], : inner[1]]
        large = interpolate(large, outer, mode="bilinear")[0]
        positive = large > 0
        quality = (large.sigmoid() * positive).sum((1, 2)) / (positive.sum((1, 2)) + 1e-6)
        scores = (best * quality[places]).tolist()
        masks = positive.cpu().numpy()
        return [
            Detection(self.class_names[label], score, box_of(masks[place]), masks[place])
            for label, score, place in zip(classes.tolist(), scores, places.tolist(), strict=True)
            if masks[place].any()
        ]


def _padded(side: int) -> int:
    return -(-side // STRIDE) * STRIDE


def load(source: str, device: Device | str) -> Mask2Former:
    """The model of a directory or hub id, shared per process."""
    return shared("mask2former", source, device, lambda folder: Mask2Former(folder, device))
