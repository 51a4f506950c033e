"""Faces: a finder (largest face of an image) and an embedder (crop -> vector of norm 1), each in two families.

N images or crops, D embedding width; a box is (x0, y0, x1, y1) in the image's pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from facenet_pytorch import MTCNN, InceptionResnetV1
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from services.models import detector as detectors
from services.models import pretrained, weights
from services.models.cache import Device, frozen, like, shared
from services.models.images import area, by_shape, pixel_values
from services.models.settings import DetectorSettings
from services.models.types import Box, Detector
from synod.contracts import Pixels

_MTCNN_MIN_FACE = 20  # px, facenet-pytorch's default; smaller images would leave its pyramid empty
_FACENET_SIDE = 160
FACE_CLASS = "face"  # of a detector that finds faces
FACE_THRESHOLD = 0.3  # of its scores


class FaceFinder(Protocol):
    def largest(self, images: Sequence[Pixels]) -> list[Box | None]:
        """Return the box of the largest face of each image, None where there is none."""
        ...


class FaceEmbedder(Protocol):
    def embed(self, crops: Sequence[Pixels]) -> NDArray[np.float32]:
        """Return [N D], L2-normalised but for dlib's; the crops may differ in size."""
        ...


class MtcnnFinder:
    """facenet-pytorch's MTCNN (Zhang et al. 2016), whose weights ship in the package.

    Half a million parameters and a cascade of thresholds: it stays in float32, and is not compiled.
    """

    def __init__(self, device: Device | str) -> None:
        name = device if isinstance(device, str) else device.name
        self._model: Any = frozen(MTCNN(min_face_size=_MTCNN_MIN_FACE, device=torch.device(name)), name)

    def largest(self, images: Sequence[Pixels]) -> list[Box | None]:
        boxes: list[Box | None] = [None] * len(images)
        for group in by_shape(images):
            if min(images[group[0]].shape[:2]) < _MTCNN_MIN_FACE:
                continue
            found, _ = self._model.detect([Image.fromarray(images[i]) for i in group])  # largest first
            for i, candidates in zip(group, found, strict=True):
                if candidates is not None:
                    boxes[i] = _floats(candidates[0])
        return boxes


class DetectorFinder:
    """Boxes of one class of an object detector."""

    def __init__(self, detector: Detector, class_name: str, threshold: float) -> None:
        if class_name not in detector.class_names:
            raise ValueError(
                f"finder class '{class_name}' is not one of the detector's: {sorted(detector.class_names)}"
            )
        self._detector, self._class_name, self._threshold = detector, class_name, threshold

    def largest(self, images: Sequence[Pixels]) -> list[Box | None]:
        faces = (
            [d.box for d in detections if d.score > self._threshold]
            for detections in self._detector.detect(images, (self._class_name,), self._threshold)
        )
        return [max(boxes, key=area, default=None) for boxes in faces]


class FacenetEmbedder:
    """InceptionResnetV1 (FaceNet, Schroff et al. 2015) at 160 px, pixels scaled as (x - 127.5) / 128."""

    def __init__(self, file: Path, device: Device | str) -> None:
        with weights.parameters_on_meta():
            model = InceptionResnetV1(pretrained=None)
        state = {key: value for key, value in weights.read(file).items() if not key.startswith("logits.")}
        weights.load_into(model, state, file)
        self._model: Any = frozen(model, device)

    @torch.inference_mode()
    def embed(self, crops: Sequence[Pixels]) -> NDArray[np.float32]:
        side = (_FACENET_SIDE, _FACENET_SIDE)
        resized = [np.asarray(Image.fromarray(crop).resize(side, Image.Resampling.BILINEAR)) for crop in crops]
        device = next(self._model.parameters()).device
        batch = torch.from_numpy(np.stack(resized)).to(device).permute(0, 3, 1, 2).float()
        embedded = self._model(like(self._model, (batch - 127.5) / 128.0))
        rows: NDArray[np.float32] = torch.nn.functional.normalize(embedded.float(), dim=-1).cpu().numpy()
        return rows


class SmallEmbedder:
    """A vision model directory: its pooled output, or the mean of its last hidden states where it has no pooler."""

    def __init__(self, folder: Path, device: Device | str) -> None:
        self._processor: Any = AutoImageProcessor.from_pretrained(folder)
        self._model: Any = pretrained.load(AutoModel, folder, device, optional="pooler", heads=True)

    @torch.inference_mode()
    def embed(self, crops: Sequence[Pixels]) -> NDArray[np.float32]:
        output = self._model(pixel_values=pixel_values(self._processor, crops, self._model))
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            pooled = output.last_hidden_state.mean(dim=1)
        rows: NDArray[np.float32] = torch.nn.functional.normalize(pooled.flatten(1).float(), dim=-1).cpu().numpy()
        return rows


def finder(
    *,
    family: Literal["mtcnn", "detector"],
    device: Device | str,
    detector: DetectorSettings | None = None,
) -> FaceFinder:
    """Return the finder of a settings' `finder` table."""
    if family == "mtcnn":
        return MtcnnFinder(device)
    assert detector is not None
    return DetectorFinder(detectors.build(detector, device), FACE_CLASS, FACE_THRESHOLD)


def embedder(
    *,
    family: Literal["facenet", "small", "dlib"],
    device: Device | str,
    model: str | None = None,
    weights: str | None = None,
    margin: float = 0.0,
) -> FaceEmbedder:
    """Return the embedder of a settings' `embedder` table, shared per process except dlib's, which runs on the CPU."""
    if family == "dlib":
        from services.models.dlib_face import DlibEmbedder  # here, since the extra `dlib` may be missing

        return DlibEmbedder(margin)
    if family == "facenet":
        assert weights is not None
        return shared("facenet", weights, device, lambda file: FacenetEmbedder(file, device))
    assert model is not None
    return shared("small_face", model, device, lambda folder: SmallEmbedder(folder, device))


def _floats(row: NDArray[np.float32]) -> Box:
    return float(row[0]), float(row[1]), float(row[2]), float(row[3])
