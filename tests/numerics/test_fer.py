"""FER (eq. 33) on a real photograph: facenet-pytorch's own pipeline is the second implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN, InceptionResnetV1
from PIL import Image
from skimage import data

from services.scorers import fer
from services.scorers.fer import FerSettings
from synod.contracts import Score, ScoreFailure, ScoreItem

ImageFactory = Callable[..., list[Any]]


@pytest.fixture
def astronaut() -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[:256, 96:352])  # a 256 x 256 portrait


def scorer(tiny_models: Any, **changes: Any) -> fer.Fer:
    tree = {
        "kind": "fer",
        "finder": {"family": "mtcnn"},
        "embedder": {"family": "facenet", "weights": tiny_models.facenet},
        **changes,
    }
    return fer.build("fer", FerSettings.model_validate(tree))


def darker(image: np.ndarray) -> np.ndarray:
    return (image * 0.55).astype(np.uint8)


def facenet_pytorch(weights: str, image: np.ndarray) -> np.ndarray:
    model = InceptionResnetV1(pretrained=None, classify=False, num_classes=None).eval()
    model.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    face = MTCNN(image_size=160, margin=0, post_process=True)(Image.fromarray(image))
    with torch.no_grad():
        return model(face[None])[0].numpy()


def test_cosines_equal_facenet_pytorchs_pipeline(
    tiny_models: Any, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fer, "MARGIN", 0.0)
    references = (np.ascontiguousarray(astronaut[:, ::-1]), darker(astronaut))
    (outcome,) = scorer(tiny_models).score([ScoreItem(image=astronaut, references=references)])
    row = facenet_pytorch(tiny_models.facenet, astronaut)
    expected = [float(facenet_pytorch(tiny_models.facenet, r) @ row) for r in references]
    assert isinstance(outcome, Score)
    # theirs truncates the box's corners to whole pixels, ours rounds: at most one pixel of difference a side
    assert outcome.detail["cosines"] == pytest.approx(expected, abs=2e-2)
    assert outcome.value == pytest.approx(np.mean(outcome.detail["cosines"]), abs=1e-6)
    x0, y0, x1, y1 = outcome.detail["box"]
    assert x0 < 127 < x1, "the face is at about (127, 117)"
    assert y0 < 117 < y1
    mirrored = outcome.detail["reference_boxes"][0]
    assert (256 - mirrored[2], 256 - mirrored[0]) == pytest.approx((x0, x1), abs=6)


def test_value_is_the_mean_over_the_references(tiny_models: Any, astronaut: np.ndarray) -> None:
    item = ScoreItem(image=astronaut, references=(darker(astronaut), astronaut.copy()))
    (mean,) = scorer(tiny_models).score([item])
    assert isinstance(mean, Score)
    assert mean.detail["cosines"][1] == pytest.approx(1.0, abs=1e-5)
    assert mean.value == pytest.approx(np.mean(mean.detail["cosines"]), abs=1e-6)
    assert mean.value < 1.0


def test_an_image_without_a_face_scores_zero_with_a_reason(
    tiny_models: Any, astronaut: np.ndarray, make_images: ImageFactory
) -> None:
    for image in (*make_images(1), np.zeros((8, 8, 3), np.uint8)):
        (outcome,) = scorer(tiny_models).score([ScoreItem(image=image, references=(astronaut,))])
        assert isinstance(outcome, Score)
        assert outcome.value == 0.0
        assert outcome.detail["reason"] == "no face in the image"
        assert outcome.detail["box"] is None
        assert outcome.detail["reference_boxes"][0] is not None


def test_a_reference_without_a_face_fails_only_its_item(
    tiny_models: Any, astronaut: np.ndarray, make_images: ImageFactory
) -> None:
    bad = ScoreItem(image=astronaut, references=(astronaut, *make_images(1)))
    good = ScoreItem(image=astronaut, references=(astronaut,))
    first, second = scorer(tiny_models).score([bad, good])
    assert isinstance(first, ScoreFailure)
    assert first.code == "no_reference_face"
    assert "[1]" in first.message
    assert isinstance(second, Score)
