"""DER (eq. 32) against transformers called directly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, Dinov2Model

from services.scorers import der
from services.scorers.der import DerSettings
from synod.contracts import Score, ScoreItem

ImageFactory = Callable[..., list[Any]]


def direct(folder: str, image: np.ndarray) -> np.ndarray:
    model = Dinov2Model.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
        row = model(**inputs).last_hidden_state[0, 0].double().numpy()
    return np.asarray(row / np.linalg.norm(row))


def test_cosines_equal_the_librarys(tiny_models: Any, make_images: ImageFactory) -> None:
    image, *references = make_images(2, 1) + make_images(1, 2, size=(70, 40)) + make_images(1, 3, size=(32, 90))
    scorer = der.build("der", DerSettings(kind="der", model=tiny_models.dinov2))
    (outcome,) = scorer.score([ScoreItem(image=image, references=tuple(references))])
    row = direct(tiny_models.dinov2, image)
    expected = [float(direct(tiny_models.dinov2, reference) @ row) for reference in references]
    assert isinstance(outcome, Score)
    assert outcome.detail["cosines"] == pytest.approx(expected, abs=1e-5)
    assert outcome.value == pytest.approx(np.mean(expected), abs=1e-5)
    assert max(expected) - min(expected) > 0.01, "the references differ"


def test_equal_images_have_cosine_one(tiny_models: Any, make_images: ImageFactory) -> None:
    image, other = make_images(2)
    scorer = der.build("der", DerSettings(kind="der", model=tiny_models.dinov2))
    (outcome,) = scorer.score([ScoreItem(image=image, references=(other, image.copy()))])
    assert isinstance(outcome, Score)
    assert outcome.detail["cosines"][1] == pytest.approx(1.0, abs=1e-6)
    assert max(outcome.detail["cosines"]) <= 1.0
