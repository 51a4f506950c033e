"""CLIP-IQA against torchmetrics' formula on features of the model's forward pass, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchmetrics.functional.multimodal.clip_iqa import _PROMPTS, _clip_iqa_compute

from services.scorers.clip_iqa import PROMPTS, ClipIqa, ClipIqaSettings
from synod.contracts import Score, ScoreItem
from tests.building import build

ImageFactory = Callable[..., list[Any]]


class Fixed:
    """A CLIP of two dimensions: the prompts are the axes, an image is the angle that its first pixel names."""

    def image_features(self, images: Any) -> np.ndarray:
        angles = np.radians([float(image.flat[0]) for image in images])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    def text_features(self, texts: Any) -> np.ndarray:
        return np.eye(2, dtype=np.float32)


def values(scorer: Any, images: list[Any]) -> list[float]:
    outcomes = scorer.score([ScoreItem(image=image) for image in images])
    assert all(isinstance(outcome, Score) for outcome in outcomes)
    return [outcome.value for outcome in outcomes]


def test_value_equals_torchmetrics_formula(tiny_models: Any, make_images: ImageFactory) -> None:
    images = [*make_images(3, 1), *make_images(1, 2, size=(70, 40)), *make_images(1, 3, size=(32, 90))]
    name = f"local-dir:{tiny_models.open_clip}"
    model, _, prepare = open_clip.create_model_and_transforms(name)
    with torch.no_grad():
        pixels = torch.stack([prepare(Image.fromarray(image)) for image in images])
        rows, anchors = model.eval()(pixels, open_clip.get_tokenizer(name)(list(_PROMPTS["quality"])))[:2]
        expected = _clip_iqa_compute(rows, anchors, ["quality"])
    found = values(build(kind="clip_iqa", model={"family": "open_clip", "model": tiny_models.open_clip}), images)
    assert _PROMPTS["quality"] == PROMPTS
    assert found == pytest.approx(expected.tolist(), abs=1e-4)
    assert max(found) - min(found) > 0.01, "the images differ in quality"


@pytest.mark.parametrize(("degrees", "expected"), [(45, 0.5), (44, 0.9219), (0, 1.0), (90, 0.0)])
def test_value_is_the_softmax_worked_by_hand(degrees: int, expected: float) -> None:
    settings = ClipIqaSettings.model_validate({"kind": "clip_iqa", "model": {"family": "open_clip", "model": "a/b"}})
    image = np.full((2, 2, 3), degrees, np.uint8)
    # at 44 degrees the cosines differ by sqrt(2) * sin(1 degree) = 0.024682: 1 / (1 + e^-2.4682) = 0.9219
    assert values(ClipIqa("it", Fixed(), settings), [image]) == pytest.approx([expected], abs=1e-4)
