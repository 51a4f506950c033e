"""Mask2Former's pipeline against a naive one: nested loops over pairs, one mask at a time, plain numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Mask2FormerForUniversalSegmentation

from services.models import mask2former
from services.models.types import Box, box_of, within
from synod.errors import NonFinite

ImageFactory = Callable[..., list[Any]]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((64, 64), (800, 800)), ((480, 640), (800, 1067)), ((500, 1000), (667, 1333)), ((1600, 2000), (800, 1000))],
)
def test_ratio_is_kept_within_1333_by_800(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert mask2former.resized(*size) == expected


def naive(folder: str, image: np.ndarray) -> list[tuple[str, float, list[float], np.ndarray]]:
    height, width, _ = image.shape
    h, w = mask2former.resized(height, width)
    H, W = int(np.ceil(h / 32)) * 32, int(np.ceil(w / 32)) * 32
    small = torch.nn.functional.interpolate(torch.tensor(image).permute(2, 0, 1)[None].float(), (h, w), mode="bilinear")
    canvas = torch.zeros(1, 3, H, W)
    for channel, (mean, std) in enumerate([(123.675, 58.395), (116.28, 57.12), (103.53, 57.375)]):
        canvas[0, channel, :h, :w] = (small[0, channel] - mean) / std
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        output = model(pixel_values=canvas)
    logits = output.class_queries_logits[0].double().numpy()
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    pairs = sorted(
        ((probabilities[q, c], q, c) for q in range(logits.shape[0]) for c in range(logits.shape[1] - 1)), reverse=True
    )
    names = {0: "cat", 1: "computer mouse", 2: "person"}
    found = []
    for probability, query, label in pairs[:100]:
        mask = torch.nn.functional.interpolate(
            output.masks_queries_logits[:, query : query + 1], (H, W), mode="bilinear"
        )
        mask = torch.nn.functional.interpolate(mask[:, :, :h, :w], (height, width), mode="bilinear")[0, 0].numpy()
        inside = mask > 0
        if inside.any():
            score = probability * np.mean(1 / (1 + np.exp(-mask[inside].astype(np.float64))))
            ys, xs = np.nonzero(inside)
            found.append((names[label], score, [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], inside))
    return found


@pytest.fixture
def sparse_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random masks cover everything; lowered by a different amount per query, they differ in box and some are empty.

    Both pipelines run at a third of the size: the law is the same and the test ten times quicker.
    """
    monkeypatch.setattr(mask2former, "SHORT_SIDE", 240)
    monkeypatch.setattr(mask2former, "LONG_SIDE", 400)
    forward = Mask2FormerForUniversalSegmentation.forward

    def lowered(self: Any, **inputs: Any) -> Any:
        output = forward(self, **inputs)
        output.masks_queries_logits = output.masks_queries_logits - torch.linspace(0, 4, 40).view(1, -1, 1, 1)
        return output

    monkeypatch.setattr(Mask2FormerForUniversalSegmentation, "forward", lowered)


@pytest.mark.usefixtures("sparse_masks")
def test_detections_equal_the_naive_pipelines(tiny_models: Any, make_images: ImageFactory) -> None:
    images = make_images(1, 5, size=(48, 80)) + make_images(1, 6) + make_images(1, 7, size=(48, 80))
    detector = mask2former.load(tiny_models.mask2former, "cpu")
    assert detector.class_names == ("cat", "computer mouse", "person")
    for image, detections in zip(images, detector.detect(images), strict=True):
        expected = naive(tiny_models.mask2former, image)
        assert 0 < len(detections) == len(expected) <= 100
        ours = sorted(((d.score, d.class_name, d.box, d.mask.sum()) for d in detections), reverse=True)
        theirs = sorted(((s, n, tuple(b), m.sum()) for n, s, b, m in expected), reverse=True)
        for (score, name, box, area), (score_, name_, box_, area_) in zip(ours, theirs, strict=True):
            assert score == pytest.approx(score_, abs=1e-4)
            assert name == name_
            assert box == pytest.approx(box_, abs=2)
            assert abs(int(area) - int(area_)) <= 0.02 * image.shape[0] * image.shape[1]
        assert len({(d.box, d.class_name) for d in detections}) > 10
        assert len(expected) < 100, "some masks are empty"


def test_some_classes_alone_are_those_of_all(tiny_models: Any, make_images: ImageFactory) -> None:
    detector = mask2former.load(tiny_models.mask2former, "cpu")
    images = make_images(1, 6)
    (every,), (cats,) = detector.detect(images), detector.detect(images, ("cat",))
    assert 0 < len(cats) < len(every)
    assert [(d.score, d.box) for d in cats] == [(d.score, d.box) for d in every if d.class_name == "cat"]


def all_at_once(detector: Any, image: np.ndarray) -> list[tuple[str, float, Box, np.ndarray]]:
    """All masks of an image in one tensor at its size."""
    inner, outer = mask2former.resized(*image.shape[:2]), image.shape[:2]
    with torch.inference_mode():
        output = detector._model(pixel_values=detector._normalised([image], inner))
        height, width = (-(-side // 32) * 32 for side in inner)
        best, pairs = output.class_queries_logits[0].softmax(-1)[:, :-1].flatten().topk(100)
        large = torch.nn.functional.interpolate(output.masks_queries_logits, (height, width), mode="bilinear")
        large = torch.nn.functional.interpolate(large[:, :, : inner[0], : inner[1]], outer, mode="bilinear")[0]
        positive = large > 0
        quality = (large.sigmoid() * positive).sum((1, 2)) / (positive.sum((1, 2)) + 1e-6)
    masks = positive.numpy()
    return [
        (detector.class_names[pair % 3], float(score * quality[pair // 3]), box_of(masks[pair // 3]), masks[pair // 3])
        for score, pair in zip(best, pairs.tolist(), strict=True)
        if masks[pair // 3].any()
    ]


@pytest.mark.usefixtures("sparse_masks")
@pytest.mark.parametrize("size", [(64, 64), (150, 500), (600, 450)])
def test_masks_made_singly_equal_all_at_once(
    tiny_models: Any, make_images: ImageFactory, size: tuple[int, int]
) -> None:
    detector = mask2former.load(tiny_models.mask2former, "cpu")
    for image in make_images(2, 3, size=size):
        (detections,) = detector.detect([image])
        expected = all_at_once(detector, image)
        assert [(d.class_name, d.box) for d in detections] == [(name, box) for name, _, box, _ in expected]
        assert [d.score for d in detections] == pytest.approx([score for _, score, _, _ in expected], rel=1e-6)
        for detection, (_, _, box, mask) in zip(detections, expected, strict=True):
            assert np.array_equal(detection.mask, within(mask, box))


@pytest.mark.usefixtures("sparse_masks")
def test_least_score_keeps_what_reaches_it(
    tiny_models: Any, make_images: ImageFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = mask2former.load(tiny_models.mask2former, "cpu")
    images = make_images(2, 3)
    every = detector.detect(images)
    least = sorted(d.score for found in every for d in found)[-4]
    made: list[int] = []
    shape = mask2former._shape

    def counted(*given: Any) -> Any:
        made.append(1)
        return shape(*given)

    monkeypatch.setattr(mask2former, "_shape", counted)
    for found, of_image in zip(detector.detect(images, least=least), every, strict=True):
        expected = [d for d in of_image if d.score >= np.float32(least)]
        assert [(d.class_name, d.score, d.box) for d in found] == [(d.class_name, d.score, d.box) for d in expected]
    assert 0 < len(made) < 2 * 40, "no mask is made of a pair that cannot reach it"


@pytest.mark.parametrize("output", ["class_queries_logits", "masks_queries_logits"])
def test_output_that_is_not_finite_is_a_failure(
    tiny_models: Any, make_images: ImageFactory, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """NaN compares as false: it used to mean that nothing is in the image."""
    forward = Mask2FormerForUniversalSegmentation.forward

    def overflowed(self: Any, **inputs: Any) -> Any:
        found = forward(self, **inputs)
        found[output][0, 3] = torch.nan
        return found

    monkeypatch.setattr(Mask2FormerForUniversalSegmentation, "forward", overflowed)
    with pytest.raises(NonFinite, match=r"float32 is not finite.*dtype"):
        mask2former.load(tiny_models.mask2former, "cpu").detect(make_images(1))
