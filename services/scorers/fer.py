"""FER: is it the same face? Sync-R1, eq. 33: cosine of face embeddings, the mean over the references.

dlib's embeddings are compared by 1 - Euclidean distance, at least -1, as Sync-R1's public code does: above 0.4 is one
person.

An image without a face was measured: it scores 0 with a reason. A reference without a face is an input error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from services.models.settings import DetectorSettings
from services.scorers.base import ScorerSpec
from services.scorers.shared.images import crop, deduplicate
from services.settings_types import ModelSource, Node, ScorerSettings
from synod.contracts import Outcome, Pixels, Score, ScoreFailure, ScoreItem
from synod.errors import NoReferenceFace

if TYPE_CHECKING:
    from services.models.face import FaceEmbedder, FaceFinder
    from services.models.types import Box


MARGIN, DLIB_MARGIN = 0.1, 0.25


class MtcnnFinder(Node):
    """facenet-pytorch's MTCNN; its weights ship in the package."""

    family: Literal["mtcnn"]


class DetectorFinder(Node):
    """Boxes of the class "face" of a detector."""

    family: Literal["detector"]
    detector: DetectorSettings


class FacenetEmbedder(Node):
    """facenet-pytorch's InceptionResnetV1, from a weights file."""

    family: Literal["facenet"]
    weights: ModelSource


class SmallFaceEmbedder(Node):
    """A vision model directory; the pooled output is the embedding."""

    family: Literal["small"]
    model: ModelSource


class DlibEmbedder(Node):
    """dlib's 128-d embedding, from the extra `dlib`. It is compared by 1 - distance."""

    family: Literal["dlib"]


class FerSettings(ScorerSettings):
    """FER (eq. 33): cosine of face embeddings. No face in the image scores 0 with a reason."""

    kind: Literal["fer"]
    finder: Annotated[MtcnnFinder | DetectorFinder, Field(discriminator="family")]
    embedder: Annotated[FacenetEmbedder | SmallFaceEmbedder | DlibEmbedder, Field(discriminator="family")]

    @property
    def margin(self) -> float:
        """Return the share of its size by which a face's box is widened on each side; dlib needs more to align it."""
        return DLIB_MARGIN if self.embedder.family == "dlib" else MARGIN


def spec(name: str, settings: FerSettings) -> ScorerSpec:
    summary = "the largest face of the image against those of the references"
    return ScorerSpec(name, ("image", "references"), -1.0, 1.0, "Sync-R1, eq. 33", summary, sized=True)


def build(name: str, settings: FerSettings) -> Fer:
    from services.models import face
    from services.models.cache import Device

    device = Device.of(settings.serving)
    finder = face.finder(**dict(settings.finder), device=device)
    return Fer(name, finder, face.embedder(**dict(settings.embedder), margin=settings.margin, device=device), settings)


class Fer:
    def __init__(self, name: str, finder: FaceFinder, embedder: FaceEmbedder, settings: FerSettings) -> None:
        self.spec = spec(name, settings)
        self._finder, self._embedder, self._settings = finder, embedder, settings
        self._by_distance = settings.embedder.family == "dlib"

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        groups = [(item.pixels(), *item.reference_pixels()) for item in items]
        kept, places = deduplicate([pixels for group in groups for pixels in group])
        boxes, rows = self._faces(kept)
        outcomes: list[Outcome] = []
        for group in groups:
            image, *references = places[: len(group)]
            places = places[len(group) :]
            outcomes.append(self._one(image, references, boxes, rows))
        return outcomes

    def embed(self, images: Sequence[Pixels]) -> dict[int, NDArray[np.float32]]:
        """Return the embedding of the largest face of each image that has one, by the image's place."""
        return self._faces(images)[1]

    def _faces(self, images: Sequence[Pixels]) -> tuple[list[Box | None], dict[int, NDArray[np.float32]]]:
        boxes = list(self._finder.largest(images))
        places = [i for i, box in enumerate(boxes) if box is not None]
        crops = [crop(images[i], box, self._settings.margin) for i, box in enumerate(boxes) if box is not None]
        return boxes, dict(zip(places, self._embedder.embed(crops), strict=True)) if crops else {}

    def _one(
        self, image: int, references: list[int], boxes: list[Box | None], rows: dict[int, NDArray[np.float32]]
    ) -> Outcome:
        faceless = [number for number, place in enumerate(references) if boxes[place] is None]
        if faceless:
            return ScoreFailure.of(NoReferenceFace(f"no face in reference(s) {faceless}; give images that show one"))
        box, *reference_boxes = (_listed(boxes[place]) for place in (image, *references))
        detail = {"box": box, "reference_boxes": reference_boxes}
        if box is None:
            return Score(0.0, {**detail, "reason": "no face in the image"})
        others = np.stack([rows[place] for place in references])
        if self._by_distance:
            distances = np.linalg.norm(others - rows[image], axis=1)
            value = np.mean(np.clip(1.0 - distances, -1.0, 1.0))
            return Score(float(value), {**detail, "distances": distances.tolist()})
        cosines = np.clip(others @ rows[image], -1.0, 1.0)
        return Score(float(np.mean(cosines)), {**detail, "cosines": cosines.tolist()})


def _listed(box: Box | None) -> list[float] | None:
    return None if box is None else list(box)
