"""ImageMemo: results live as long as their image, and scorers of one process find each other's."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor

from services.models import image_memo
from services.models import images as module
from services.models.image_memo import ImageMemo


def test_results_end_with_their_image() -> None:
    memo, image = ImageMemo(), np.zeros((2, 2, 3), np.uint8)
    memo.enabled = True
    memo.of(image, "a")["x"] = 1
    assert memo.of(image, "a") == {"x": 1}
    assert memo.of(image, "b") == memo.of(image.copy(), "a") == {}
    del image
    gc.collect()
    assert len(memo) == 0


def test_a_disabled_memo_keeps_nothing() -> None:
    memo, image = ImageMemo(), np.zeros((2, 2, 3), np.uint8)
    memo.of(image, "a")["x"] = 1
    assert memo.of(image, "a") == {}
    assert len(memo) == 0


def test_detections_equal_those_without_a_memo(
    make_images: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image is segmented once, whether the first call is for all classes or one, with equal results."""
    from services.models import semantic

    source = str(Path(__file__).parents[4] / "embedded/weights/detector-world")
    images = list(make_images(3))
    segmented: list[int] = []
    detector = semantic.load(source, "cpu", 1)
    assert semantic.load(source, "cpu", 1) is detector
    logits = detector._segmenter.logits
    monkeypatch.setattr(detector._segmenter, "logits", lambda some: segmented.append(len(some)) or logits(some))

    def found(classes: tuple[str, ...] | None) -> list[list[tuple[str, float, object, bytes]]]:
        return [
            [(d.class_name, d.score, d.box, d.bits.tobytes()) for d in one] for one in detector.detect(images, classes)
        ]

    monkeypatch.setattr(image_memo.MEMO, "enabled", False)
    expected = [found(None), found(("face",))]
    monkeypatch.setattr(image_memo.MEMO, "enabled", True)
    segmented.clear()
    assert [found(None), found(("face",))] == expected
    images = [image.copy() for image in images]
    assert [found(("face",)), found(None)] == expected[::-1]
    assert segmented == [3, 0, 3, 0]


def test_scorers_that_prepare_alike_share_prepared_images(
    make_images: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """BLIP-2 and DINOv2 resize alike: what one has prepared, the other does not prepare again, with equal results."""
    weights = Path(__file__).parents[4] / "embedded/weights"
    blip2, dinov2, segformer = (
        AutoImageProcessor.from_pretrained(weights / name) for name in ("blip2-world", "dinov2-world", "detector-world")
    )
    assert module.preparation(blip2) == module.preparation(dinov2) != module.preparation(segformer)
    model = SimpleNamespace(device="cpu", dtype=torch.float32)
    images = [np.resize(image, (300, 200 + 100 * i, 3)) for i, image in enumerate(make_images(4))]
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 300 * 700)  # several parts
    monkeypatch.setattr(image_memo.MEMO, "enabled", False)
    expected = module.pixel_values(dinov2, images, model)
    monkeypatch.setattr(image_memo.MEMO, "enabled", True)
    assert torch.equal(module.pixel_values(blip2, images[1:3], model), expected[1:3])
    prepared: list[int] = []
    preprocess = type(dinov2).preprocess
    monkeypatch.setattr(
        type(dinov2).__mro__[1],
        "preprocess",
        lambda self, some, **options: prepared.append(len(some)) or preprocess(self, some, **options),
    )
    assert torch.equal(module.pixel_values(dinov2, images, model), expected)
    assert torch.equal(module.pixel_values(blip2, images, model), expected)
    assert sum(prepared) == 2
