"""ImageReward against a forward pass written out in tensors, on a file in the published naming."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor
from torch.nn.functional import gelu, layer_norm
from transformers import AutoTokenizer

from services.models import image_reward
from synod.contracts import Score, ScoreItem
from synod.errors import SettingsError
from tests.building import build

State = dict[str, Tensor]
TEXTS = ("a red cat", "two birds on grass", "dog", "a red cat and a blue dog " * 12)


@pytest.fixture
def items(make_images: Callable[..., list[Any]]) -> list[ScoreItem]:
    images = [
        *make_images(1, 1),
        *make_images(1, 2, size=(70, 40)),
        *make_images(1, 3, size=(33, 91)),
        data.astronaut(),
    ]
    return [ScoreItem(image=image, prompt=text) for image, text in zip(images, TEXTS, strict=True)]


def affine(state: State, name: str, rows: Tensor) -> Tensor:
    return rows @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def normed(state: State, name: str, rows: Tensor, eps: float) -> Tensor:
    return layer_norm(rows, rows.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """[Lq D], [Lk D], [Lk D] -> [Lq D], head by head."""
    size = q.shape[-1] // heads
    parts = [slice(h * size, (h + 1) * size) for h in range(heads)]
    return torch.cat([torch.softmax(q[:, p] @ k[:, p].T / size**0.5, dim=-1) @ v[:, p] for p in parts], dim=-1)


def prepared(image: Any, side: int) -> Tensor:
    """[3 side side]: short side to `side`, bicubic; the middle; CLIP's mean and deviation."""
    original = Image.fromarray(image)
    scale = side / min(original.size)
    width, height = (side if edge == min(original.size) else int(scale * edge) for edge in original.size)
    whole = np.asarray(original.resize((width, height), Image.Resampling.BICUBIC), np.float64) / 255
    top, left = round((height - side) / 2), round((width - side) / 2)
    cut = whole[top : top + side, left : left + side]
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return torch.from_numpy((cut - mean) / deviation).float().permute(2, 0, 1)


def image_rows(state: State, pixels: Tensor) -> Tensor:
    """[P W]. One head of 64: the tiny model is as wide as one head of the published one."""
    at, side = "blip.visual_encoder", state["blip.visual_encoder.patch_embed.proj.weight"].shape[-1]
    kernel = state[f"{at}.patch_embed.proj.weight"].flatten(1)  # [W 3*side*side]
    cells = [
        pixels[:, y : y + side, x : x + side].flatten()
        for y in range(0, pixels.shape[1], side)
        for x in range(0, pixels.shape[2], side)
    ]
    rows = torch.stack(cells) @ kernel.T + state[f"{at}.patch_embed.proj.bias"]
    rows = torch.cat([state[f"{at}.cls_token"][0], rows]) + state[f"{at}.pos_embed"][0]
    for i in range(2):
        block = f"{at}.blocks.{i}"
        q, k, v = affine(state, f"{block}.attn.qkv", normed(state, f"{block}.norm1", rows, 1e-6)).chunk(3, dim=-1)
        rows = rows + affine(state, f"{block}.attn.proj", attention(q, k, v, 1))
        inner = gelu(affine(state, f"{block}.mlp.fc1", normed(state, f"{block}.norm2", rows, 1e-6)))
        rows = rows + affine(state, f"{block}.mlp.fc2", inner)
    return normed(state, f"{at}.norm", rows, 1e-6)


def reward(state: State, tokenizer: Any, image: Any, text: str) -> float:
    """Of one image and text, without padding."""
    patches = image_rows(state, prepared(image, 32))
    at, ids = "blip.text_encoder", tokenizer(text, truncation=True, max_length=35)["input_ids"]
    rows = state[f"{at}.embeddings.word_embeddings.weight"][ids]
    rows = rows + state[f"{at}.embeddings.position_embeddings.weight"][: len(ids)]
    rows = normed(state, f"{at}.embeddings.LayerNorm", rows, 1e-12)
    for i in range(2):
        layer = f"{at}.encoder.layer.{i}"
        for name, source in (("attention", None), ("crossattention", patches)):
            seen = rows if source is None else source
            q = affine(state, f"{layer}.{name}.self.query", rows)
            k, v = (affine(state, f"{layer}.{name}.self.{part}", seen) for part in ("key", "value"))
            out = affine(state, f"{layer}.{name}.output.dense", attention(q, k, v, 4))
            rows = normed(state, f"{layer}.{name}.output.LayerNorm", out + rows, 1e-12)
        out = affine(state, f"{layer}.output.dense", gelu(affine(state, f"{layer}.intermediate.dense", rows)))
        rows = normed(state, f"{layer}.output.LayerNorm", out + rows, 1e-12)
    row = rows[:1]
    for place in (0, 2, 4, 6, 7):
        row = affine(state, f"mlp.layers.{place}", row)
    return (float(row) - 0.16717362830052426) / 1.0333394966054072


def published(tiny_models: Any) -> State:
    state: State = torch.load(f"{tiny_models.image_reward}/ImageReward.pt", weights_only=True)
    return state


def subject(tiny_models: Any, folder: Path | str | None = None) -> Any:
    model = str(folder or tiny_models.image_reward)
    return build(kind="image_reward", model=model, tokenizer=tiny_models.text)


def values(scorer: Any, items: list[ScoreItem]) -> list[float]:
    outcomes = scorer.score(items)
    assert all(isinstance(outcome, Score) for outcome in outcomes)
    return [outcome.value for outcome in outcomes]


def test_reward_equals_the_forward_pass_in_tensors(tiny_models: Any, items: list[ScoreItem]) -> None:
    state, tokenizer = published(tiny_models), AutoTokenizer.from_pretrained(tiny_models.text)
    expected = [reward(state, tokenizer, item.pixels(), str(item.prompt)) for item in items]
    assert values(subject(tiny_models), items) == pytest.approx(expected, abs=2e-4)
    assert max(expected) - min(expected) > 0.1, "the items differ"


def test_names_map_one_to_one(tiny_models: Any) -> None:
    names = [name for name in published(tiny_models) if "_proj." not in name.replace("attn.proj", "")]
    names = [name for name in names if not name.endswith("position_ids") and "blip.text_proj" not in name]
    ours = [image_reward.our_name(name) for name in names]
    assert len(set(ours)) == len(ours) > 80


def test_control_tokens_in_a_prompt_are_text(tiny_models: Any, items: list[ScoreItem]) -> None:
    """'[SEP]' read as a control token would end the text for BERT; as text it is unknown to the tiny vocabulary."""
    image = items[0].image
    said = [ScoreItem(image=image, prompt=text) for text in ("cat [SEP] dog", "cat [CLS] dog", "cat qqq dog")]
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.text)
    controlled = reward(published(tiny_models), tokenizer, image, "cat [SEP] dog")
    first, second, _ = values(subject(tiny_models), said)
    assert first != pytest.approx(controlled, abs=1e-3)
    assert first == pytest.approx(second, abs=1e-5), "both are '[', an unknown word and ']'"


def spoilt(tiny_models: Any, folder: Path, **changes: Tensor | None) -> Path:
    shutil.copytree(tiny_models.image_reward, folder)
    state: dict[str, Any] = {**published(tiny_models), **{name.replace("__", "."): t for name, t in changes.items()}}
    torch.save({name: t for name, t in state.items() if t is not None}, folder / "ImageReward.pt")
    return folder


@pytest.mark.parametrize(("bias", "end"), [(500.0, 10.0), (-500.0, -10.0)])
def test_a_reward_beyond_the_range_is_clipped(
    tiny_models: Any, items: list[ScoreItem], tmp_path: Path, bias: float, end: float
) -> None:
    folder = spoilt(tiny_models, tmp_path / "far", mlp__layers__7__bias=torch.tensor([bias]))
    (before,), (outcome,) = (one.score(items[:1]) for one in (subject(tiny_models), subject(tiny_models, folder)))
    assert outcome.value == end
    moved = (bias - float(published(tiny_models)["mlp.layers.7.bias"])) / 1.0333394966054072
    assert outcome.detail["reward"] == pytest.approx(before.detail["reward"] + moved, abs=1e-3)


def test_files_of_another_model_are_refused(tiny_models: Any, tmp_path: Path) -> None:
    lacking = spoilt(tiny_models, tmp_path / "lacking", mlp__layers__7__bias=None)
    more = spoilt(tiny_models, tmp_path / "more", blip__itm_head__weight=torch.zeros(2, 32))
    bare = spoilt(tiny_models, tmp_path / "bare", **{"blip.visual_encoder.patch_embed.proj.weight": None})
    other = spoilt(tiny_models, tmp_path / "other")
    (other / "med_config.json").write_text(json.dumps({"hidden_size": 32}))
    empty = spoilt(tiny_models, tmp_path / "empty")
    (empty / "ImageReward.pt").unlink()
    no_config = spoilt(tiny_models, tmp_path / "no_config")
    (no_config / "med_config.json").unlink()
    for folder, message in (
        (lacking, r"missing head\.7\.bias"),
        (more, r"'blip\.itm_head\.weight' is not one of ImageReward"),
        (bare, "sizes of ImageReward cannot be read"),
        (other, "'vocab_size'"),
        (empty, "no such weights file"),
        (no_config, r"med_config\.json: .*give the published"),
    ):
        with pytest.raises(SettingsError, match=message):
            subject(tiny_models, folder)
