"""CLIP-T and CLIP-I against torchmetrics' CLIPScore and CLIP-IQA on the same model directory.

torchmetrics gives max(0, 100 cosine); ours is the cosine, with its sign. Of transformers' outputs it expects the rows.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.multimodal import clip_image_quality_assessment, clip_score
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPProcessor

from synod.contracts import Pixels, Score, ScoreItem
from tests.building import build

CAPTIONS = (
    "a red cat",
    "two birds on grass",
    "dog",
    "a person wearing a blue hat",
    "hat",
    "three black dog",
    "scarf",
    "a",
)


class Rows:
    """A CLIPModel whose features are rows, as they were before transformers 5."""

    def __init__(self, folder: str) -> None:
        self._model: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.config = self._model.config

    def to(self, device: torch.device) -> Rows:
        assert device.type == "cpu"
        return self

    @torch.no_grad()
    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self._model.get_image_features(pixels).pooler_output)

    @torch.no_grad()
    def get_text_features(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self._model.get_text_features(tokens, mask).pooler_output)


@pytest.fixture(scope="module")
def theirs(tiny_models: Any) -> Any:
    """What torchmetrics calls for a model and its processor."""
    folder = tiny_models.clip
    processor = CLIPProcessor(AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    model = Rows(folder)
    return lambda: (model, processor)


def tensor(image: Pixels) -> torch.Tensor:
    """[3 H W], levels 0..255."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def cosines(tiny_models: Any, items: list[ScoreItem], kind: str = "clip_t") -> list[float]:
    model = {"family": "transformers", "model": tiny_models.clip}
    outcomes = build(kind, kind=kind, model=model).score(items)
    assert all(isinstance(outcome, Score) for outcome in outcomes)
    return [outcome.value for outcome in outcomes if isinstance(outcome, Score)]


def floored(cosines: list[float]) -> list[float]:
    return [max(0.0, 100 * cosine) for cosine in cosines]


def test_clip_t_is_clip_score_over_100_without_its_floor(
    tiny_models: Any, theirs: Any, photographs: dict[str, Pixels]
) -> None:
    asked = [(image, text) for image in photographs.values() for text in CAPTIONS]
    ours = cosines(tiny_models, [ScoreItem(image=image, prompt=text) for image, text in asked])
    expected = [float(clip_score(tensor(image), text, theirs)) for image, text in asked]
    assert floored(ours) == pytest.approx(expected, abs=1e-3)
    assert min(ours) < 0 < max(ours), "a floor at 0 would change the values"


def test_clip_i_is_clip_score_of_two_images(tiny_models: Any, theirs: Any, photographs: dict[str, Pixels]) -> None:
    pairs = list(pairwise(photographs.values()))
    ours = cosines(tiny_models, [ScoreItem(image=a, references=(b,)) for a, b in pairs], "clip_i")
    expected = [float(clip_score(tensor(a), tensor(b), theirs)) for a, b in pairs]
    assert floored(ours) == pytest.approx(expected, abs=1e-3)
    assert min(ours) < 0 < max(ours), "a floor at 0 would change the values"


def test_clip_iqa_follows_from_clip_t(tiny_models: Any, theirs: Any, photographs: dict[str, Pixels]) -> None:
    """Softmax over 100 times the cosines to a good and a bad description (Wang et al. 2023, eq. 2)."""
    good, bad = "a red object", "a black object"
    for image in photographs.values():
        up, down = cosines(tiny_models, [ScoreItem(image=image, prompt=text) for text in (good, bad)])
        batch = tensor(image)[None].float()
        theirs_value = clip_image_quality_assessment(batch, theirs, prompts=((good, bad),))
        assert 1 / (1 + math.exp(100 * (down - up))) == pytest.approx(float(theirs_value), abs=1e-3)


def test_a_caption_beyond_the_window_keeps_its_end_token(
    tiny_models: Any, theirs: Any, photographs: dict[str, Pixels]
) -> None:
    """CLIP reads a text off at its end token. torchmetrics cuts that off with the rest, with a warning; we do not."""
    image, long = photographs["cat"], "a red cat and a blue dog " * 4
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.clip)
    window = 16
    kept = tokenizer.decode(tokenizer(long)["input_ids"][1 : window - 1])
    ours = cosines(tiny_models, [ScoreItem(image=image, prompt=text) for text in (long, kept)])
    assert ours[0] == pytest.approx(ours[1], abs=1e-6)
    assert floored(ours)[1] == pytest.approx(float(clip_score(tensor(image), kept, theirs)), abs=1e-3)
    with pytest.warns(UserWarning, match="longer than"):
        cut = float(clip_score(tensor(image), long, theirs))
    assert not np.isclose(cut / 100, ours[0], atol=1e-3)
