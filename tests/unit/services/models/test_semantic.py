"""Components, parts and scores from maps drawn by hand; the segmenter against transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.measure
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from services.models import detector, semantic
from services.models.settings import DetectorSettings
from services.models.types import box_of
from synod.contracts import Pixels
from synod.errors import NonFinite

LABELS = ("background", "cat", "person", "face")


class Painted:
    """A segmenter whose winner at each pixel is a digit of the drawing, with probability .7 and .1 for the others."""

    labels = LABELS
    part_of = {"face": "person"}  # noqa: RUF012

    def __init__(self, *rows: str) -> None:
        winner = np.array([[int(digit) for digit in row] for row in rows])
        self.maps = torch.from_numpy(np.log(np.where(np.arange(4) == winner[..., None], 0.7, 0.1)))

    def logits(self, images: Sequence[Pixels]) -> Iterator[tuple[int, torch.Tensor]]:
        return enumerate([self.maps for _ in images])


def maps(segmenter: semantic.Segmenter, images: Sequence[Pixels]) -> list[torch.Tensor]:
    """In the order of the images."""
    found = dict(segmenter.logits(images))
    return [found[i] for i in range(len(images))]


def objects(segmenter: Painted, min_area: int = 1) -> list[tuple[str, float, tuple[float, ...]]]:
    (found,) = semantic.SemanticDetector(segmenter, min_area).detect([np.zeros((1, 1, 3), np.uint8)])  # type: ignore[arg-type]
    for detection in found:
        x0, y0, x1, y1 = detection.box
        assert detection.mask.shape == (y1 - y0, x1 - x0)
        assert box_of(detection.mask) == (0, 0, x1 - x0, y1 - y0)
    return [(d.class_name, round(d.score, 4), d.box) for d in found]


def test_components_are_eight_connected_with_exclusive_far_edges() -> None:
    drawing = Painted("100001", "010001", "000000")
    assert objects(drawing) == [("cat", 0.7, (0, 0, 2, 2)), ("cat", 0.7, (5, 0, 6, 2))]


def test_a_part_belongs_to_its_whole_and_is_a_class_of_its_own() -> None:
    drawing = Painted("0330", "0220", "0220")
    assert objects(drawing) == [("person", 0.8, (1, 0, 3, 3)), ("face", 0.7, (1, 0, 3, 1))]
    assert objects(Painted("030")) == [("person", 0.8, (1, 0, 2, 1)), ("face", 0.7, (1, 0, 2, 1))]


def test_small_components_are_dropped() -> None:
    drawing = Painted("110010", "110000")
    assert objects(drawing, min_area=2) == [("cat", 0.7, (0, 0, 2, 2))]
    assert objects(drawing, min_area=5) == []


def test_the_winners_are_the_librarys_at_the_images_size(tiny_models: Any, make_images: Callable[..., Any]) -> None:
    images = [*make_images(2, 1), *make_images(1, 2, size=(40, 90)), *make_images(1, 3)]
    segmenter = semantic.Segmenter(tiny_models.semantic, "cpu")
    model = AutoModelForSemanticSegmentation.from_pretrained(tiny_models.semantic, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(tiny_models.semantic)
    for image, ours in zip(images, maps(segmenter, images), strict=True):
        assert ours.shape == (*image.shape[:2], 5)
        with torch.no_grad():
            output = model(**processor(image, return_tensors="pt"))
        expected = processor.post_process_semantic_segmentation(output, target_sizes=[image.shape[:2]])[0].numpy()
        assert np.mean(ours.argmax(dim=-1).numpy() == expected) > 0.999


def test_components_scores_and_boxes_are_those_of_whole_maps(make_images: Callable[..., Any], tiny_models: Any) -> None:
    """The same by whole probability maps and one comparison of pixels at a time."""
    segmenter = semantic.Segmenter(tiny_models.semantic, "cpu")
    images = [*make_images(2, 1), *make_images(1, 2, size=(40, 90))]
    built = detector.build(DetectorSettings(family="semantic", model=tiny_models.semantic), "cpu")
    for logits, found in zip(maps(segmenter, images), built.detect(images), strict=True):
        probabilities = logits.softmax(dim=-1).numpy()
        winner = probabilities.argmax(axis=-1)
        expected = []
        for name in ("cat", "dog", "person", "face"):
            members = [segmenter.labels.index(n) for n in {"person": ("person", "face")}.get(name, (name,))]
            components = skimage.measure.label(np.isin(winner, members), connectivity=2)
            for region in skimage.measure.regionprops(components):
                if region.area >= semantic.MIN_AREA:
                    score = probabilities[..., members].sum(axis=-1)[components == region.label].mean()
                    y0, x0, y1, x1 = region.bbox
                    expected.append((name, round(float(score), 4), (x0, y0, x1, y1)))
        assert expected
        assert sorted((d.class_name, round(d.score, 4), d.box) for d in found) == sorted(expected)


def test_some_classes_alone() -> None:
    built = semantic.SemanticDetector(Painted("0130"), 1)  # type: ignore[arg-type]
    assert built.class_names == ("cat", "person", "face")
    (found,) = built.detect([np.zeros((1, 1, 3), np.uint8)], ("face",))
    assert [(d.class_name, d.box) for d in found] == [("face", (2, 0, 3, 1))]


def test_logits_that_are_not_finite_are_a_failure(tiny_models: Any, make_images: Callable[..., Any]) -> None:
    """The largest of NaNs is the first class, the background: an image without objects, which is a score."""
    segmenter = semantic.Segmenter(Path(tiny_models.semantic), "cpu")
    next(segmenter._model.parameters()).data.fill_(torch.nan)
    with pytest.raises(NonFinite, match=r"float32 is not finite.*dtype"):
        maps(segmenter, make_images(1))
