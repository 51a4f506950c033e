"""Pictures of every kind a trainer holds, and a dataset's columns, as items of the contract."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from synod.adapters.items import content_of, contents_of, item_of
from synod.contracts import Concept, Content, GenEvalClause, GenEvalMetadata, Reasoning
from synod.errors import BadImage, InvalidRequest
from synod.images import ImageLimits, decode, encode_png

PIXELS = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3) * 10  # H W 3, no two values alike
CHW = torch.from_numpy(PIXELS.transpose(2, 0, 1).copy())


def pixels_of(content: Content) -> Any:
    return decode(content, ImageLimits(2**20, 2**20)) if isinstance(content, bytes) else content


@pytest.mark.parametrize(
    "picture",
    [
        encode_png(PIXELS),
        {"bytes": encode_png(PIXELS), "path": None},
        Image.fromarray(PIXELS),
        Image.fromarray(PIXELS).convert("RGBA"),
        PIXELS,
        PIXELS.astype(np.float32) / 255,
        CHW,
        CHW.float() / 255,
        (CHW.double() / 255).requires_grad_(),
        CHW.permute(0, 2, 1).contiguous().permute(0, 2, 1),
    ],
    ids=["png", "datasets", "PIL", "RGBA", "numpy", "numpy float", "torch", "torch float", "with grad", "strided"],
)
def test_every_kind_of_picture_is_the_same_picture(picture: object) -> None:
    assert np.array_equal(pixels_of(content_of(picture)), PIXELS)


def test_half_precision_is_within_a_step_of_the_picture() -> None:
    found = pixels_of(content_of((CHW.float() / 255).bfloat16()))
    assert np.abs(found.astype(int) - PIXELS).max() <= 1


def test_batches_of_tensors_arrays_and_lists() -> None:
    for batch in (torch.stack([CHW, CHW]), np.stack([PIXELS, PIXELS]), [CHW, PIXELS]):
        first, second = contents_of(batch)
        assert np.array_equal(first, PIXELS)
        assert np.array_equal(second, PIXELS)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("cat.png", "a str is no picture; give bytes, a PIL image"),
        (CHW.float() / 127.5 - 1, r"floats in -1\.\.0.8039\d*; a float picture is in 0\.\.1"),
        (np.full((2, 2, 3), np.nan), r"floats in nan\.\.nan"),
        (CHW[0], r"uint8 of shape \[2, 4\] \(channels last\); give torch \[3, H, W\]"),
        (CHW.int(), r"int32 of shape \[2, 4, 3\]"),
        (PIXELS.transpose(2, 0, 1), r"uint8 of shape \[3, 2, 4\] \(channels last\); give numpy \[H, W, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \[0, 4, 3\]"),
        (Image.new("CMYK", (2, 2)), "a PIL image of mode CMYK: .*; convert it to RGB"),
    ],
)
def test_what_is_no_picture_says_what_would_be_one(picture: object, message: str) -> None:
    with pytest.raises(BadImage, match=message):
        content_of(picture)
    with pytest.raises(BadImage, match=r"^images\[1\]: "):
        contents_of([PIXELS, picture])


def test_transparent_pictures_keep_their_alpha_for_the_plane() -> None:
    content = content_of(Image.new("RGBA", (2, 2), (200, 0, 0, 0)))
    assert isinstance(content, bytes)
    assert Image.open(io.BytesIO(content)).mode == "RGBA"


def test_columns_are_the_contracts_fields() -> None:
    columns = {
        "reasoning": {"text": "a", "segments": np.array(["b", "c"], object), "truth": np.array([1.0, 0.0])},
        "geneval": {"tag": "counting", "include": [{"class": "cup", "count": np.int64(2), "color": None}]},
        "concept": {"kind": "animal", "class_word": "dog", "token": None},
        "references": [PIXELS],
        "source_prompt": "a cat",
        "split": "train",
    }
    item = item_of(CHW, "a dog", columns)
    assert item.prompt == "a dog"
    assert item.reasoning == Reasoning("a", ("b", "c"), (1.0, 0.0))
    assert item.geneval == GenEvalMetadata("counting", (GenEvalClause("cup", 2),))
    assert item.concept == Concept("animal", "dog")
    assert item.source_prompt == "a cat"
    assert np.array_equal(pixels_of(item.references[0]), PIXELS)  # type: ignore[arg-type]


def test_a_wrong_column_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"^reasoning\.truth\[0\]: 2"):
        item_of(None, None, {"reasoning": {"text": "a", "segments": ["b"], "truth": [2]}})
    with pytest.raises(InvalidRequest, match=r"^concept\.surprise: unknown key"):
        item_of(None, None, {"concept": {"kind": "animal", "surprise": 1}})
