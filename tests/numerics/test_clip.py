"""CLIP-I, CLIP-T and the direction against the two libraries called another way: their forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from skimage import data, filters
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from services.scorers.base import Scorer, score_batch
from synod.contracts import Concept, Pixels, Score, ScoreFailure, ScoreItem
from tests.building import build

ImageFactory = Callable[..., list[Any]]
FAMILIES = ("transformers", "open_clip")
LONG = "a red cat and a blue dog " * 6


def scorer(tiny_models: Any, kind: str, family: str, **settings: Any) -> Scorer:
    folder = {"transformers": tiny_models.clip, "open_clip": tiny_models.open_clip}[family]
    return build(kind, kind=kind, model={"family": family, "model": folder}, **settings)


def embeddings(tiny_models: Any, family: str, image: Pixels, text: str) -> tuple[np.ndarray, np.ndarray]:
    """One image's and one text's features of norm 1, by the model's forward pass."""
    with torch.no_grad():
        if family == "open_clip":
            name = f"local-dir:{tiny_models.open_clip}"
            model, _, prepare = open_clip.create_model_and_transforms(name)
            pixels, tokens = prepare(Image.fromarray(image))[None], open_clip.get_tokenizer(name)([text])
            rows = model.eval()(pixels, tokens)[:2]
        else:
            inputs = AutoImageProcessor.from_pretrained(tiny_models.clip)(Image.fromarray(image), return_tensors="pt")
            tokens = AutoTokenizer.from_pretrained(tiny_models.clip)(
                text, truncation=True, max_length=16, return_tensors="pt"
            )
            output = CLIPModel.from_pretrained(tiny_models.clip).eval()(
                input_ids=tokens["input_ids"], pixel_values=inputs["pixel_values"]
            )
            rows = output.image_embeds, output.text_embeds
    first, second = (row[0].double().numpy() for row in rows)
    return first / np.linalg.norm(first), second / np.linalg.norm(second)


def value(outcome: object) -> float:
    assert isinstance(outcome, Score), outcome
    return outcome.value


@pytest.mark.parametrize("family", FAMILIES)
def test_clip_t_is_the_cosine_of_the_forward_pass(tiny_models: Any, make_images: ImageFactory, family: str) -> None:
    images = [*make_images(2, 1), *make_images(1, 2, size=(70, 40)), *make_images(1, 3, size=(32, 90))]
    texts = ["a red cat", "two birds on grass", "dog", LONG]
    items = [ScoreItem(image=image, prompt=text) for image, text in zip(images, texts, strict=True)]
    expected = []
    for image, text in zip(images, texts, strict=True):
        row, words = embeddings(tiny_models, family, image, text)
        expected.append(float(row @ words))
    outcomes = scorer(tiny_models, "clip_t", family).score(items)
    assert [value(outcome) for outcome in outcomes] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01, "the items differ"


@pytest.mark.parametrize("family", FAMILIES)
def test_clip_i_is_the_mean_cosine_to_the_references(tiny_models: Any, make_images: ImageFactory, family: str) -> None:
    image, *references = [*make_images(2, 1), *make_images(1, 2, size=(70, 40)), *make_images(1, 3, size=(32, 90))]
    row, *others = (embeddings(tiny_models, family, one, "a cat")[0] for one in (image, *references))
    expected = [float(row @ other) for other in others]
    (outcome,) = scorer(tiny_models, "clip_i", family).score([ScoreItem(image=image, references=tuple(references))])
    assert isinstance(outcome, Score)
    assert outcome.detail["cosines"] == pytest.approx(expected, abs=1e-5)
    assert outcome.value == pytest.approx(np.mean(expected), abs=1e-5)
    assert max(expected) - min(expected) > 0.01, "the references differ"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_direction_is_from_source_to_edit(tiny_models: Any, make_images: ImageFactory, family: str) -> None:
    image, source, other = make_images(3, 4)
    before = embeddings(tiny_models, family, source, "a red cat")
    after = embeddings(tiny_models, family, image, "two black birds")
    change = [new - old for new, old in zip(after, before, strict=True)]
    expected = float(change[0] @ change[1] / np.linalg.norm(change[0]) / np.linalg.norm(change[1]))
    item = ScoreItem(image=image, prompt="two black birds", references=(source, other), source_prompt="a red cat")
    back = ScoreItem(image=source, prompt="a red cat", references=(image,), source_prompt="two black birds")
    wrong = ScoreItem(image=image, prompt="a red cat", references=(source,), source_prompt="two black birds")
    outcomes = scorer(tiny_models, "clip_direction", family).score([item, back, wrong])
    assert [value(one) for one in outcomes] == pytest.approx([expected, expected, -expected], abs=1e-4)
    assert abs(expected) > 0.01, "the sign matters"


def test_an_edit_that_changes_nothing_has_no_direction(tiny_models: Any, make_images: ImageFactory) -> None:
    image, source = make_images(2)
    whole = ScoreItem(image=image, prompt="a cat", references=(source,), source_prompt="a dog")
    same_image = ScoreItem(image=source.copy(), prompt="a cat", references=(source,), source_prompt="a dog")
    same_text = ScoreItem(image=image, prompt="a cat", references=(source,), source_prompt=" a  cat ")
    tokens = ScoreItem(image=image, prompt="<bo>", references=(source,), source_prompt="a cat")
    subject = scorer(tiny_models, "clip_direction", "transformers")
    outcomes = score_batch(subject, [same_image, whole, same_text, tokens])
    assert isinstance(outcomes[1], Score)
    failures = [one for one in outcomes if isinstance(one, ScoreFailure)]
    assert [one.code for one in failures] == ["invalid_item"] * 3
    assert "the image and its source are the same to CLIP" in failures[0].message
    assert "the text and its source are the same to CLIP" in failures[1].message
    assert "no words besides concept tokens" in failures[2].message
    assert score_batch(subject, [tokens]) == [failures[2]]


def test_a_concepts_token_is_read_as_its_class_word(tiny_models: Any, make_images: ImageFactory) -> None:
    (image,) = make_images(1)
    concept = Concept("animal", "dog", "<bo>")
    subject = scorer(tiny_models, "clip_t", "transformers")
    named, plain, empty = subject.score(
        [
            ScoreItem(image=image, prompt="a photo of <bo>", concept=concept),
            ScoreItem(image=image, prompt="a photo of dog"),
            ScoreItem(image=image, prompt="<bo>"),
        ]
    )
    assert value(named) == pytest.approx(value(plain), abs=1e-6)
    assert isinstance(named, Score)
    assert named.detail["text"] == "a photo of dog"
    assert isinstance(empty, ScoreFailure)
    assert (empty.code, "'<bo>'" in empty.message) == ("invalid_item", True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_photograph_is_nearest_to_itself_then_to_its_blur(tiny_models: Any, family: str) -> None:
    astronaut, coffee = data.astronaut()[:400], data.coffee()
    blurred = (filters.gaussian(astronaut, 2, channel_axis=2) * 255).astype(np.uint8)
    subject = scorer(tiny_models, "clip_i", family)
    outcomes = subject.score([ScoreItem(image=one, references=(astronaut,)) for one in (astronaut, blurred, coffee)])
    same, near, far = map(value, outcomes)
    assert same == pytest.approx(1.0, abs=1e-6)
    assert 1.0 >= same > near > far
