"""The colour classifier against open_clip called directly, and the cutout against Pillow's composite and crop."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip as library
import pytest
import torch
from PIL import Image

from services.models import open_clip
from services.models.types import Detection, box_of, within
from services.scorers.geneval.colour import ColorClassifier, cutout
from services.scorers.geneval.rules import COLORS
from synod.errors import NonFinite

ImageFactory = Callable[..., list[Any]]


def direct(folder: str, crop: np.ndarray, name: str) -> tuple[str, float]:
    """The colour, and its lead over the second."""
    model, _, transform = library.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = library.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    logits = []
    with torch.no_grad():
        image = torch.nn.functional.normalize(model.encode_image(transform(Image.fromarray(crop))[None]), dim=-1)[0]
        for color in COLORS:
            texts = [
                f"a photo of a {color} {name}",
                f"a photo of a {color}-colored {name}",
                f"a photo of a {color} object",
            ]
            rows = [torch.nn.functional.normalize(model.encode_text(tokenizer([t])), dim=-1)[0] for t in texts]
            mean = (rows[0] + rows[1] + rows[2]) / 3
            logits.append(float(image @ (mean / mean.norm())))
    best = sorted(logits)
    return COLORS[int(np.argmax(logits))], best[-1] - best[-2]


def test_colors_equal_the_librarys_and_classes_do_not_mix(tiny_models: Any, make_images: ImageFactory) -> None:
    crops = make_images(4, 1) + make_images(4, 2, size=(21, 37))
    names = ["cat", "dog", "person", "cat", "dog", "bird", "cat", "hat"]
    colors = ColorClassifier(open_clip.load(tiny_models.open_clip, None, "cpu")).classify(crops, names)
    for crop, name, color in zip(crops, names, colors, strict=True):
        expected, lead = direct(tiny_models.open_clip, crop, name)
        assert color == expected or lead < 1e-5
    assert len(set(colors)) > 1


def test_no_crops_need_no_forward() -> None:
    assert ColorClassifier(None).classify([], []) == []  # type: ignore[arg-type]


def test_cutout_paints_everything_outside_the_mask_grey(make_images: ImageFactory) -> None:
    (image,) = make_images(1, size=(20, 30))
    mask = np.zeros((20, 30), bool)
    mask[4:9, 7:15] = True
    mask[6, 9] = False
    box = box_of(mask)
    assert box == (7.0, 4.0, 15.0, 9.0)
    blank = Image.new("RGB", (30, 20), "#999")
    expected = Image.composite(Image.fromarray(image), blank, Image.fromarray(mask.astype(np.uint8) * 255)).crop(box)
    ours = cutout(image, Detection.of("cat", 0.9, box, within(mask, box)))
    assert np.array_equal(ours, np.asarray(expected))
    assert ours[2, 2].tolist() == [0x99] * 3


@pytest.mark.parametrize("broken", ["image_features", "text_features"])
def test_features_that_are_not_finite_are_no_colour(broken: str) -> None:
    clip = SimpleNamespace(
        image_features=lambda crops: np.ones((len(crops), 4), np.float32),
        text_features=lambda texts: np.ones((len(texts), 4), np.float32),
    )
    classifier: Any = ColorClassifier(clip)  # type: ignore[arg-type]
    assert classifier.classify([np.zeros((8, 8, 3), np.uint8)], ["cat"]) == ["red"]
    setattr(clip, broken, lambda given: np.full((len(given), 4), np.nan, np.float32))
    with pytest.raises(NonFinite, match="the colour model's features are not finite; serve it with dtype = 'float32'"):
        ColorClassifier(clip).classify([np.zeros((8, 8, 3), np.uint8)], ["cat"])  # type: ignore[arg-type]
