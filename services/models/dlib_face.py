"""dlib's face embedding (King 2017): landmarks, an aligned 150 px chip, a 128-d vector that is not normalised.

Two faces of one person are nearer than 0.6 in Euclidean distance, by dlib's own account; the cosine says little: all
vectors lie in one narrow cone. Packages: the extra `dlib`; its models come with face-recognition-models.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synod.contracts import Pixels
from synod.errors import SettingsError

try:
    import dlib
except ModuleNotFoundError:
    raise SettingsError("dlib is not installed, which family = \"dlib\" needs; pip install 'synod[dlib]'") from None

_CHIP_SIDE, _CHIP_PADDING = 150, 0.25  # what the network was trained on


class DlibEmbedder:
    """`margin`: by which share of the face's box each crop was widened, so that the box is found again in it."""

    def __init__(self, margin: float) -> None:
        folder = _models()
        self._margin = margin
        self._landmarks: Any = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
        self._network: Any = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))

    def embed(self, crops: Sequence[Pixels]) -> NDArray[np.float32]:
        """Return [N 128]; all chips in one call."""
        rows = self._network.compute_face_descriptor([self._chip(np.array(crop, order="C")) for crop in crops])
        return np.array(rows, np.float32).reshape(len(crops), -1)

    def _chip(self, crop: Pixels) -> Any:
        height, width, _ = crop.shape
        dx, dy = (round(side * self._margin / (1 + 2 * self._margin)) for side in (width, height))
        face = dlib.rectangle(dx, dy, width - 1 - dx, height - 1 - dy)
        return dlib.get_face_chip(crop, self._landmarks(crop, face), _CHIP_SIDE, _CHIP_PADDING)


def _models() -> Path:
    found = importlib.util.find_spec("face_recognition_models")  # not imported: it needs pkg_resources
    if found is None or found.origin is None:
        raise SettingsError("face-recognition-models is not installed; pip install 'synod[dlib]'")
    return Path(found.origin).parent / "models"
