"""Images of every type that a trainer holds, and dataset columns, as items."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from synod.adapters.flow_grpo import columns_of
from synod.adapters.items import image_data_list, image_data_of, item_of, prompt_of
from synod.contracts import Concept, GenEvalClause, GenEvalMetadata, ImageData, Reasoning
from synod.errors import BadImage, InvalidRequest
from synod.images import ImageLimits, decode, encode_png

PIXELS = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3) * 10  # H W 3, no two values alike
CHW = torch.from_numpy(PIXELS.transpose(2, 0, 1).copy())


def pixels_of(content: ImageData) -> Any:
    return decode(content, ImageLimits(2**20, 2**20)) if isinstance(content, bytes) else content


@pytest.mark.parametrize(
    "image",
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
        CHW[None],
        PIXELS[None],
        CHW.numpy()[None],
    ],
)
def test_every_image_type_becomes_the_same_image(image: object) -> None:
    assert np.array_equal(pixels_of(image_data_of(image)), PIXELS)


def test_half_precision_is_within_one_level() -> None:
    found = pixels_of(image_data_of((CHW.float() / 255).bfloat16()))
    assert np.abs(found.astype(int) - PIXELS).max() <= 1


def test_batches_of_tensors_arrays_and_lists() -> None:
    for batch in (torch.stack([CHW, CHW]), np.stack([PIXELS, PIXELS]), [CHW, PIXELS]):
        first, second = image_data_list(batch)
        assert np.array_equal(first, PIXELS)
        assert np.array_equal(second, PIXELS)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("cat.png", "a str is not an image; give bytes, a PIL image"),
        (CHW.float() / 127.5 - 1, r"floats are in -1\.\.0.8039\d*; rescale them to 0\.\.1"),
        (np.full((2, 2, 3), np.nan), r"floats are in nan\.\.nan"),
        (CHW[0], r"uint8 of shape \[2, 4\] \(channels last\); give torch \[3, H, W\]"),
        (CHW.int(), r"int32 of shape \[2, 4, 3\]"),
        (PIXELS.transpose(2, 0, 1), r"uint8 of shape \[3, 2, 4\] \(channels last\); give numpy \[H, W, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \[0, 4, 3\]"),
        (Image.new("F", (2, 2)), "a PIL image of mode F, which has no fixed range; convert it to RGB"),
        (np.stack([PIXELS, PIXELS]), r"uint8 of shape \[2, 2, 4, 3\]"),
        ("data:image/png,cat", "is not a base64 data: URL"),
    ],
)
def test_invalid_image_error_names_valid_types(image: object, message: str) -> None:
    with pytest.raises(BadImage, match=message):
        image_data_of(image)
    with pytest.raises(BadImage, match=r"^images\[1\]: "):
        image_data_list([PIXELS, image])


def files() -> dict[str, bytes]:
    """Each file has a format for which PIL's own pixels are not those that are scored."""

    def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    image = Image.fromarray(np.kron(PIXELS, np.ones((8, 8, 1), np.uint8)))
    exif = {i: Image.Exif() for i in range(1, 9)}
    for orientation, tags in exif.items():
        tags[0x0112] = orientation
    key = tuple(int(v) for v in PIXELS[0, 0])
    kinds = [("PNG", {}), ("JPEG", {"quality": 90}), ("JPEG", {"progressive": True}), ("WEBP", {})]
    found = {
        f"{kind} {options} {orientation}": encoded(image, kind, exif=tags, **options)
        for kind, options in kinds
        for orientation, tags in exif.items()
    }
    raw = exif[6].tobytes()
    profile = PngInfo()
    profile.add_text("Raw profile type exif", f"\nexif\n{len(raw)}\n{raw.hex()}\n", zip=True)
    return found | {
        "RGB + tRNS": encoded(image, "PNG", transparency=key),
        "L + tRNS": encoded(image.convert("L"), "PNG", transparency=0),
        "P + tRNS": encoded(image.quantize(8), "PNG", transparency=1),
        "P, 2 bits": encoded(image.quantize(4), "PNG", bits=2),
        "1": encoded(image.convert("1"), "PNG"),
        "LA": encoded(image.convert("LA"), "PNG"),
        "RGBA": encoded(Image.merge("RGBA", (*image.split(), image.convert("L"))), "PNG"),
        "I;16": encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000), "PNG"),
        "CMYK": encoded(image.convert("CMYK"), "JPEG"),
        "grey JPEG": encoded(image.convert("L"), "JPEG"),
        "raw profile": encoded(image, "PNG", pnginfo=profile),
        "lossless alpha": encoded(image.convert("RGBA"), "WEBP", lossless=True),
    }


@pytest.mark.parametrize(("name", "data"), files().items(), ids=files())
def test_pil_image_equals_its_decoded_file(name: str, data: bytes) -> None:
    for loaded in (False, True):
        image = Image.open(io.BytesIO(data))
        if loaded:
            image.load()
        np.testing.assert_array_equal(image_data_of(image), pixels_of(data))
    if "raw profile" in name or name.endswith((" 5", " 6", " 7", " 8")):
        assert pixels_of(data).shape == (32, 16, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_pil_animation_is_refused(kind: str) -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    for image in (Image.open(buffer), buffer.getvalue()):
        with pytest.raises(BadImage, match=r"animation of 2 frames|not an image of a known format"):
            pixels_of(image_data_of(image))


@pytest.mark.parametrize(
    ("value", "prompt"),
    [
        ("a cup", "a cup"),
        ("", None),
        (None, None),
        ([{"role": "user", "content": "a cup"}, {"role": "assistant", "content": "Here it is:"}], "a cup"),
        (np.array([{"role": "system", "content": "draw"}, {"role": "user", "content": "a cup"}], object), "a cup"),
        (
            np.array([{"role": "user", "content": np.array([{"type": "text", "text": "a cup"}], object)}], object),
            "a cup",
        ),
        ([{"content": "a cup"}], "a cup"),
    ],
)
def test_prompt_is_the_last_user_message(value: Any, prompt: str | None) -> None:
    assert prompt_of(value) == prompt


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"role": "assistant", "content": "Sure"}], "prompt: none of the 1 messages has the role"),
        (3, "prompt: a int is not a prompt or completion; give text"),
        (["a", "b"], "prompt: a list is not a prompt"),
        ([{"role": "user", "content": 5}], "the content of a message is a int"),
    ],
)
def test_invalid_prompt_error_names_valid_types(value: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        prompt_of(value)


def test_json_text_columns_are_parsed() -> None:
    item = item_of(None, None, {"concept": '{"kind": "animal"}', "source_prompt": "{as it is}"})
    assert (item.concept, item.source_prompt) == (Concept("animal"), "{as it is}")
    with pytest.raises(InvalidRequest, match=r"concept: the text starts with \{ but is not a JSON object"):
        item_of(None, None, {"concept": "{"})


def test_columns_map_to_item_fields() -> None:
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


PADDED: dict[str, Any] = {
    "tag": "color",
    "include": [{"class": "cup", "count": None, "color": "red", "position": None, "region": None, "size": None}],
    "exclude": None,
}
RED_CUP = GenEvalMetadata("color", (GenEvalClause("cup", 1, "red"),))
QUESTIONS = GenEvalMetadata("geneval2", (), (), (("Is there a cup?", "Yes"),))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**PADDED, "include": np.array(PADDED["include"], object), "vqa_list": None, "skills": None}, RED_CUP),
        ({"vqa_list": np.array([["Is there a cup?", "Yes"]], object), "tag": None, "include": None}, QUESTIONS),
        ({"geneval": PADDED, "tag": "mine", "include": []}, RED_CUP),
    ],
)
def test_flow_grpo_reads_genevals_lines_and_the_contracts(row: dict[str, Any], expected: GenEvalMetadata) -> None:
    assert item_of(None, "a cup", columns_of(row)).geneval == expected


def test_a_wrong_column_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"^reasoning\.truth\[0\]: 2"):
        item_of(None, None, {"reasoning": {"text": "a", "segments": ["b"], "truth": [2]}})
    with pytest.raises(InvalidRequest, match=r"^concept\.surprise: unknown key"):
        item_of(None, None, {"concept": {"kind": "animal", "surprise": 1}})
