"""FER by dlib's embedding on a real photograph, against dlib on the whole image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from services.scorers import fer
from services.scorers.base import score_batch
from services.scorers.fer import FerSettings
from services.scorers.shared.images import crop
from synod.contracts import Score, ScoreItem

dlib = pytest.importorskip("dlib", reason="the extra 'dlib' (130 MB of models) is optional: pip install 'synod[dlib]'")
dlib_face = pytest.importorskip("services.models.dlib_face")


@pytest.fixture(scope="module")
def scorer() -> fer.Fer:
    tree = {"kind": "fer", "finder": {"family": "mtcnn"}, "embedder": {"family": "dlib"}}
    return fer.build("fer", FerSettings.model_validate(tree))


@pytest.fixture
def astronaut() -> Any:
    image = np.ascontiguousarray(data.astronaut()[:256, 96:352])
    image.setflags(write=False)  # as it comes off the wire
    return image


def test_the_value_is_one_minus_the_distance(scorer: fer.Fer, astronaut: Any) -> None:
    mirrored, darker = np.ascontiguousarray(astronaut[:, ::-1]), (astronaut * 0.55).astype(np.uint8)
    items = [
        ScoreItem(image=astronaut, references=(mirrored, darker)),
        ScoreItem(image=mirrored, references=(mirrored,)),
    ]
    both = score_batch(scorer, items)
    outcome, same = both
    assert isinstance(outcome, Score)
    assert isinstance(same, Score)
    assert all(0.02 < distance < 0.4 for distance in outcome.detail["distances"])  # one person: below 0.6
    assert outcome.value == pytest.approx(1 - np.mean(outcome.detail["distances"]), abs=1e-6)
    assert same.value == 1.0
    alone = score_batch(scorer, items[:1])[0]
    assert isinstance(alone, Score)
    assert alone.value == pytest.approx(outcome.value, abs=1e-5)


def test_a_crop_embeds_as_the_whole_image_does(scorer: fer.Fer, astronaut: Any) -> None:
    (outcome,) = scorer.score([ScoreItem(image=astronaut, references=(astronaut,))])
    assert isinstance(outcome, Score)
    box = outcome.detail["box"]
    embedder, image = dlib_face.DlibEmbedder(0.25), astronaut.copy()
    shape = embedder._landmarks(image, dlib.rectangle(*(round(corner) for corner in box)))
    whole = np.array(embedder._network.compute_face_descriptor(image, shape, 0))
    (row,) = embedder.embed([crop(astronaut, tuple(box), 0.25)])
    assert np.linalg.norm(row - whole) < 0.15


def test_other_faces_are_farther_than_the_same_one(astronaut: Any) -> None:
    faces = [np.array(Image.fromarray(np.uint8(face * 255)).resize((200, 200))) for face in data.lfw_subset()[:8]]
    rows = dlib_face.DlibEmbedder(0.0).embed([np.stack([face] * 3, axis=-1) for face in faces])
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=-1)[np.triu_indices(8, 1)]
    assert np.median(distances) > 0.6
    assert (1.0 - distances).min() > -1.0
