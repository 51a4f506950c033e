"""BER (eq. 31), both heads, against the logits of transformers' own forward, and against the raw outputs by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Blip2ForImageTextRetrieval, Blip2Processor

from services.models import blip2
from services.scorers import ber
from services.scorers.ber import BerSettings
from synod.contracts import Concept, Score, ScoreItem

ImageFactory = Callable[..., list[Any]]
PROMPTS = ["a photo of a red cat", "dog", "a blue hat and a white scarf on a person wearing a black hat"]


@pytest.fixture
def raw(tiny_models: Any) -> tuple[Any, Any]:
    model = Blip2ForImageTextRetrieval.from_pretrained(tiny_models.blip2, dtype=torch.float32).eval()
    return model, Blip2Processor.from_pretrained(tiny_models.blip2)


def test_itc_equals_the_librarys_own_logits(tiny_models: Any, raw: tuple[Any, Any], make_images: ImageFactory) -> None:
    model, processor = raw
    images = make_images(3, size=(40, 56))
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    ours = blip2.load(tiny_models.blip2, "cpu")
    features, texts = ours.image_features(images), ours.text_features(PROMPTS)
    assert features.shape == (3, 4, 16)
    for column, prompt in enumerate(PROMPTS):  # one prompt at a time: no padding on the library's side
        tokens = processor.tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            expected = model(
                pixel_values=pixels, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).logits_per_image[:, 0]
        assert (features @ texts[column]).max(axis=1) == pytest.approx(expected.numpy(), abs=1e-5)


def test_itc_by_hand_from_the_raw_outputs(tiny_models: Any, raw: tuple[Any, Any], make_images: ImageFactory) -> None:
    model, processor = raw
    (image,) = make_images(1)
    tokens = processor.tokenizer(PROMPTS[0], return_tensors="pt")
    with torch.no_grad():
        patches = model.vision_model(processor.image_processor(image, return_tensors="pt")["pixel_values"])[0]
        queries = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=patches)[0][0]
        words = model.qformer(
            query_embeds=model.embeddings(input_ids=tokens["input_ids"]),
            query_length=0,
            attention_mask=tokens["attention_mask"],
        )[0][0]
    text = (
        words[0].numpy() @ model.text_projection.weight.detach().numpy().T + model.text_projection.bias.detach().numpy()
    )
    cosines = []
    for query in queries.numpy():
        view = query @ model.vision_projection.weight.detach().numpy().T + model.vision_projection.bias.detach().numpy()
        cosines.append(float(view @ text / np.linalg.norm(view) / np.linalg.norm(text)))
    scorer = ber.build("ber", BerSettings(kind="ber", model=tiny_models.blip2))
    (outcome,) = scorer.score([ScoreItem(image=image, prompt=PROMPTS[0])])
    assert isinstance(outcome, Score)
    assert outcome.value == pytest.approx(max(cosines), abs=1e-5)
    assert outcome.detail == {"query": int(np.argmax(cosines)), "text": PROMPTS[0]}


def test_prompts_are_prepared_before_they_are_scored(tiny_models: Any, make_images: ImageFactory) -> None:
    (image,) = make_images(1)
    scorer = ber.build("ber", BerSettings(kind="ber", model=tiny_models.blip2))
    concept = Concept("animal", class_word="dog", token="<bo>")
    first, second = scorer.score(
        [
            ScoreItem(image=image, prompt="a photo of <bo> <other> on grass", concept=concept),
            ScoreItem(image=image, prompt="a photo of dog on grass"),
        ]
    )
    assert isinstance(first, Score)
    assert isinstance(second, Score)
    assert first.value == second.value
    assert first.detail["text"] == "a photo of dog on grass"


def test_itm_equals_the_librarys_own_logits(tiny_models: Any, raw: tuple[Any, Any], make_images: ImageFactory) -> None:
    model, processor = raw
    images = make_images(3, size=(40, 56))
    scorer = ber.build("ber", BerSettings(kind="ber", model=tiny_models.blip2, head="itm"))
    outcomes = scorer.score([ScoreItem(image=i, prompt=p) for i, p in zip(images, PROMPTS, strict=True)])
    for image, prompt, outcome in zip(images, PROMPTS, outcomes, strict=True):  # one pair at a time: no padding
        tokens = processor.tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            logits = model(
                pixel_values=processor.image_processor(image, return_tensors="pt")["pixel_values"],
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                use_image_text_matching_head=True,
            ).logits_per_image[0]
        no, yes = np.exp(logits.double().numpy())
        assert isinstance(outcome, Score)
        assert outcome.value == pytest.approx(yes / (no + yes), abs=1e-5)
    assert len({round(o.value, 4) for o in outcomes if isinstance(o, Score)}) == 3
