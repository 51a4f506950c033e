"""GvU's intrinsic reward against the naive way: one item, one forward a token, the product of the probabilities."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from services.models import vlm
from services.scorers import likelihood
from services.scorers.base import score_batch
from services.scorers.likelihood import LikelihoodSettings
from synod.contracts import Concept, Score, ScoreFailure, ScoreItem

ImageFactory = Callable[..., list[Any]]
PROMPTS = ("a red cat", "two black birds and a white scarf", "dog", "object " * 4)


@pytest.fixture(params=["qwen", "llava"])
def folder(request: pytest.FixtureRequest, tiny_models: Any) -> str:
    found: str = getattr(tiny_models, request.param)
    return found


def scorer(folder: str, **changes: Any) -> likelihood.Likelihood:
    return likelihood.build("likelihood", LikelihoodSettings(kind="likelihood", model=folder, **changes))


@functools.cache
def raw(folder: str) -> tuple[Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return AutoProcessor.from_pretrained(folder), model


def naive(folder: str, image: Any, prompt: str, question: str) -> list[float]:
    """The probabilities of the prompt's tokens, each from a forward of its own."""
    processor, model = raw(folder)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.fromarray(image)], return_tensors="pt")
    found = []
    for token in processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]:
        with torch.no_grad():
            found.append(float(model(**inputs).logits[0, -1].double().softmax(-1)[token]))
        for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            if name in inputs:
                new = {"input_ids": token, "attention_mask": 1, "mm_token_type_ids": 0}[name]
                inputs[name] = torch.cat([inputs[name], torch.tensor([[new]])], dim=1)
    return found


def test_one_pass_over_a_padded_batch_equals_one_forward_a_token(folder: str, make_images: ImageFactory) -> None:
    images = [
        *make_images(2),
        *make_images(1, 1, size=(24, 72)),
        *make_images(1, 2, size=(90, 40)),
    ]  # prefixes differ in length
    items = [ScoreItem(image=image, prompt=prompt) for image, prompt in zip(images, PROMPTS, strict=True)]
    outcomes = scorer(folder).score(items)
    for item, outcome in zip(items, outcomes, strict=True):
        expected = naive(folder, item.image, item.prompt or "", "Describe the image in detail.")
        assert isinstance(outcome, Score)
        assert outcome.detail["log_probs"] == pytest.approx(np.log(expected), abs=1e-4)
        assert outcome.value == pytest.approx(math.prod(expected) ** (1 / len(expected)), rel=1e-4)
        assert len(outcome.detail["tokens"]) == len(expected)
    assert isinstance(outcomes[0], Score)
    assert outcomes[0].detail["tokens"] == ["a", "red", "cat"]


class Given:
    """A model of known log-probabilities."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def log_probs(self, images: Any, texts: Any, question: str) -> list[vlm.TokenLogProbs]:
        return [vlm.TokenLogProbs(("t",) * len(self.values), self.values) for _ in images]


def outcome_of(*values: float) -> Any:
    settings = LikelihoodSettings(kind="likelihood", model="a/b")
    item = ScoreItem(image=np.zeros((4, 4, 3), np.uint8), prompt="cat")
    return likelihood.Likelihood("likelihood", Given(*values), settings).score([item])[0]  # type: ignore[arg-type]


def test_a_long_prompt_does_not_underflow() -> None:
    values = [math.log(0.03), math.log(0.3)] * 400
    assert math.prod(math.exp(value) for value in values) ** (1 / 800) == 0.0  # the product as the paper writes it
    assert outcome_of(*values).value == pytest.approx(math.sqrt(0.03 * 0.3))
    assert outcome_of(0.0, 0.0).value == 1.0


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_a_log_probability_that_is_not_finite_is_no_score(value: float) -> None:
    outcome = outcome_of(-1.0, value)
    assert isinstance(outcome, ScoreFailure)
    assert outcome.code == "non_finite"


def test_a_prompt_beyond_the_window_fails_alone_and_is_not_cut(folder: str, make_images: ImageFactory) -> None:
    image = make_images(1)[0]
    items = [ScoreItem(image=image, prompt=prompt) for prompt in ("cat", "cat " * 140, "dog")]
    whole = score_batch(scorer(folder), [items[0], items[2]])
    first, long, last = score_batch(scorer(folder), items)
    assert isinstance(long, ScoreFailure)
    assert long.code == "invalid_item"
    assert "140 of text: the model reads 128" in long.message
    for alone, joint in zip(whole, (first, last), strict=True):
        assert isinstance(alone, Score)
        assert isinstance(joint, Score)
        assert joint.value == pytest.approx(alone.value, abs=1e-6)


def test_concept_tokens_become_words(folder: str, make_images: ImageFactory) -> None:
    image = make_images(1)[0]
    concept = Concept("animal", "dog", "<bo>")
    named, without_text = scorer(folder).score(
        [ScoreItem(image=image, prompt="a photo of <bo>", concept=concept), ScoreItem(image=image, prompt="<bo>")]
    )
    assert isinstance(named, Score)
    assert named.detail["text"] == "a photo of dog"
    assert isinstance(without_text, ScoreFailure)
    assert without_text.code == "invalid_item"


def test_a_processor_without_a_chat_form_is_refused(tiny_models: Any, tmp_path: Any) -> None:
    folder = shutil.copytree(tiny_models.llava, tmp_path / "llava")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        vlm.Vlm(folder, "cpu")
