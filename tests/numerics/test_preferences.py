"""PickScore, HPS and the aesthetic predictor against the models called as their authors do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from services.scorers.base import Scorer
from synod.contracts import Score, ScoreItem
from synod.errors import SettingsError
from tests.building import build

ImageFactory = Callable[..., list[Any]]
TEXTS = ("a red cat", "two birds on grass", "dog", "a red cat and a blue dog " * 6)


def values(subject: Scorer, items: list[ScoreItem]) -> list[float]:
    outcomes = subject.score(items)
    assert all(isinstance(outcome, Score) for outcome in outcomes)
    return [outcome.value for outcome in outcomes if isinstance(outcome, Score)]


@pytest.fixture
def items(make_images: ImageFactory) -> list[ScoreItem]:
    images = [
        *make_images(1, 1),
        *make_images(1, 2, size=(70, 40)),
        *make_images(1, 3, size=(32, 90)),
        data.astronaut(),
    ]
    return [ScoreItem(image=image, prompt=text) for image, text in zip(images, TEXTS, strict=True)]


def logits(folder: str, item: ScoreItem) -> float:
    """exp(logit_scale) * cosine, by the model's forward pass."""
    pixels = AutoImageProcessor.from_pretrained(folder)(Image.fromarray(item.pixels()), return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(item.prompt, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        output = CLIPModel.from_pretrained(folder).eval()(
            input_ids=tokens["input_ids"], pixel_values=pixels["pixel_values"]
        )
    return float(output.logits_per_image)


def rescaled(source: str, target: Path, logit_scale: float) -> str:
    shutil.copytree(source, target)
    state = load_file(target / "model.safetensors")
    state["logit_scale"] = torch.tensor(logit_scale)
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return str(target)


def test_pickscore_is_the_models_logit_over_26(tiny_models: Any, items: list[ScoreItem]) -> None:
    expected = [logits(tiny_models.clip, item) / 26 for item in items]
    assert values(build(kind="pickscore", model=tiny_models.clip), items) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01, "the items differ"


def test_pickscore_takes_the_processor_from_elsewhere(tiny_models: Any, items: list[ScoreItem], tmp_path: Path) -> None:
    bare, prepared = tmp_path / "bare", tmp_path / "prepared"
    for folder in (bare, prepared):
        shutil.copytree(tiny_models.clip, folder)
    for file in bare.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    (prepared / "model.safetensors").unlink()
    with pytest.raises((OSError, ValueError)):
        build(kind="pickscore", model=str(bare))
    whole = values(build(kind="pickscore", model=tiny_models.clip), items)
    parted = values(build(kind="pickscore", model=str(bare), processor=str(prepared)), items)
    assert parted == pytest.approx(whole, abs=1e-6)


def test_pickscores_scale_is_clips(tiny_models: Any, items: list[ScoreItem], tmp_path: Path) -> None:
    most = build(kind="pickscore", model=rescaled(tiny_models.clip, tmp_path / "most", float(np.log(100))))
    whole = values(build(kind="pickscore", model=tiny_models.clip), items)
    scale = float(load_file(f"{tiny_models.clip}/model.safetensors")["logit_scale"].exp())
    assert values(most, items) == pytest.approx([value * 100 / scale for value in whole], abs=1e-4)
    with pytest.raises(SettingsError, match=r"exp\(logit_scale\) is 148\.413; a CLIP has at most 100"):
        build(kind="pickscore", model=rescaled(tiny_models.clip, tmp_path / "more", 5.0))


@pytest.mark.parametrize("prefixless", [False, True])
def test_hps_is_the_cosine_under_the_files_weights(
    tiny_models: Any, items: list[ScoreItem], tmp_path: Path, prefixless: bool
) -> None:
    state = torch.load(tiny_models.hps, weights_only=True)["state_dict"]
    file = tiny_models.hps
    if prefixless:
        file = str(tmp_path / "hps.safetensors")
        save_file({key: value.contiguous() for key, value in state.items()}, file)
    name = f"local-dir:{tiny_models.open_clip}"
    model, _, prepare = open_clip.create_model_and_transforms(name)
    model.load_state_dict(state)
    tokenizer = open_clip.get_tokenizer(name)
    expected = []
    for item in items:
        with torch.no_grad():
            image, text, _ = model.eval()(prepare(Image.fromarray(item.pixels()))[None], tokenizer([item.prompt]))
        expected.append(float(torch.nn.functional.cosine_similarity(image, text)))
    subject = build(kind="hps", architecture=tiny_models.open_clip, weights=file)
    assert values(subject, items) == pytest.approx(expected, abs=1e-5)
    plain = build(kind="clip_t", model={"family": "open_clip", "model": tiny_models.open_clip})
    assert values(plain, items) != pytest.approx(expected, abs=1e-3), "the file's weights, not the directory's"


def test_hps_weights_of_another_model_are_refused(tiny_models: Any, tmp_path: Path) -> None:
    state = torch.load(tiny_models.hps, weights_only=True)["state_dict"]
    renamed = {key.replace("text_projection", "projection"): value for key, value in state.items()}
    torch.save(renamed, tmp_path / "renamed.pt")
    torch.save({**state, "text_projection": torch.zeros(32, 17)}, tmp_path / "wide.pt")
    for name, message in (
        ("renamed.pt", "missing text_projection; unexpected projection"),
        ("wide.pt", "mismatched text_projection"),
    ):
        with pytest.raises(SettingsError, match=f"{name}.*another model: {message}"):
            build(kind="hps", architecture=tiny_models.open_clip, weights=str(tmp_path / name))
    with pytest.raises(SettingsError, match="xswu/HPSv2: no such weights file"):
        build(kind="hps", architecture=tiny_models.open_clip, weights="xswu/HPSv2")


class Public(torch.nn.Module):
    """The predictor as it was trained: five linear layers with dropouts after the first three."""

    def __init__(self) -> None:
        super().__init__()
        linear = torch.nn.Linear
        self.layers = torch.nn.Sequential(
            *(linear(16, 12), torch.nn.Dropout(0.2), linear(12, 10), torch.nn.Dropout(0.2)),
            *(linear(10, 8), torch.nn.Dropout(0.1), linear(8, 4), linear(4, 1)),
        )


def test_the_aesthetic_score_is_the_public_predictors(tiny_models: Any, items: list[ScoreItem]) -> None:
    predictor = Public().eval()
    predictor.load_state_dict(torch.load(tiny_models.aesthetic, weights_only=True))
    processor = AutoImageProcessor.from_pretrained(tiny_models.clip)
    model = CLIPModel.from_pretrained(tiny_models.clip).eval()
    expected = []
    for item in items:
        with torch.no_grad():
            pixels = processor(Image.fromarray(item.pixels()), return_tensors="pt")["pixel_values"]
            row = model.visual_projection(model.vision_model(pixels).pooler_output)
            expected.append(float(predictor.layers(row / row.norm(dim=-1, keepdim=True))))
    model_table = {"family": "transformers", "model": tiny_models.clip}
    subject = build(kind="aesthetic", model=model_table, weights=tiny_models.aesthetic)
    assert values(subject, items) == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.01, "the items differ"
    assert all(0 < value < 10 for value in expected)


def changed(source: str, target: Path, **changes: torch.Tensor) -> str:
    torch.save({**torch.load(source, weights_only=True), **changes}, target)
    return str(target)


@pytest.mark.parametrize(("bias", "end"), [(500.0, 10.0), (-500.0, 0.0)])
def test_a_rating_beyond_the_range_counts_as_its_end(
    tiny_models: Any, items: list[ScoreItem], tmp_path: Path, bias: float, end: float
) -> None:
    weights = changed(tiny_models.aesthetic, tmp_path / "far.pth", **{"layers.7.bias": torch.tensor([bias])})
    model = {"family": "transformers", "model": tiny_models.clip}
    sources = (tiny_models.aesthetic, weights)
    (before,), (outcome,) = (build(kind="aesthetic", model=model, weights=one).score(items[:1]) for one in sources)
    assert isinstance(before, Score)
    assert isinstance(outcome, Score)
    assert outcome.value == end
    moved = bias - float(torch.load(tiny_models.aesthetic, weights_only=True)["layers.7.bias"])
    assert outcome.detail["rating"] == pytest.approx(before.detail["rating"] + moved, abs=1e-3)


def test_a_predictor_of_another_form_is_refused(tiny_models: Any, tmp_path: Path) -> None:
    model = {"family": "transformers", "model": tiny_models.clip}
    state = torch.load(tiny_models.aesthetic, weights_only=True)
    moved = {key.replace("layers.7", "layers.8"): value for key, value in state.items()}
    torch.save(moved, tmp_path / "moved.pth")
    changed(tiny_models.aesthetic, tmp_path / "broken.pth", **{"layers.2.weight": torch.zeros(10, 13)})
    changed(tiny_models.aesthetic, tmp_path / "bias.pth", **{"layers.2.bias": torch.zeros(11)})
    changed(tiny_models.aesthetic, tmp_path / "wide.pth", **{"layers.0.weight": torch.zeros(12, 768)})
    for name, message in (
        ("moved.pth", "missing layers.7.bias, layers.7.weight; unexpected layers.8.bias"),
        ("broken.pth", r"layers of \[\(12, 16\), \(10, 13\)"),
        ("bias.pth", "mismatched layers.2.bias"),
        ("wide.pth", "reads 768, the CLIP model gives 16 numbers"),
    ):
        with pytest.raises(SettingsError, match=f"{name}.*{message}"):
            build(kind="aesthetic", model=model, weights=str(tmp_path / name))
    with pytest.raises(SettingsError, match=r"gone\.pth: no such weights file"):
        build(kind="aesthetic", model=model, weights="gone.pth")
