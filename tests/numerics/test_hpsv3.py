"""HPSv3 against Qwen2-VL's own class and processor, one item at a time, on a file in the published naming."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data
from torch.nn.functional import linear, relu
from transformers import AutoConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from services.models import hpsv3
from services.models.cache import Device
from services.scorers.base import score_batch
from synod.contracts import Score, ScoreFailure, ScoreItem
from synod.errors import SettingsError
from tests.building import build

TEXTS = ("a red cat", "two birds on grass", "dog", "a red cat and a blue dog " * 12)


@pytest.fixture(autouse=True)
def _few_image_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpsv3, "IMAGE_TOKENS", 20)


@pytest.fixture
def items(make_images: Callable[..., list[Any]]) -> list[ScoreItem]:
    images = [*make_images(1, 1), *make_images(1, 2, size=(70, 40)), *make_images(1, 3, size=(9, 91)), data.astronaut()]
    return [ScoreItem(image=image, prompt=text) for image, text in zip(images, TEXTS, strict=True)]


def later_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as transformers 4.52 and later name them."""
    renamed = {}
    for key, value in state.items():
        if key.startswith("visual."):
            renamed[f"model.{key}"] = value
        elif key.startswith("model."):
            renamed[f"model.language_model.{key.removeprefix('model.')}"] = value
        else:
            renamed[key] = value
    return renamed


class Public:
    """As the authors run it: the whole text through the processor, the whole class, sequential positions."""

    def __init__(self, models: Any) -> None:
        self.processor = Qwen2VLProcessor.from_pretrained(models.qwen2)
        self.processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
        self.state = load_file(f"{models.hpsv3}/HPSv3.safetensors")
        config = AutoConfig.from_pretrained(models.qwen2)
        config.text_config.vocab_size = len(self.processor.tokenizer)
        self.model = Qwen2VLForConditionalGeneration(config).eval()
        self.model.load_state_dict(
            {key: value for key, value in later_names(self.state).items() if not key.startswith("rm_head")}
        )

    def inputs(self, item: ScoreItem) -> Any:
        height, width, _ = item.pixels().shape
        most, side = hpsv3.IMAGE_TOKENS * 16 * 16, 16
        rounded = [round(edge / side) * side for edge in (height, width)]
        if np.prod(rounded) != most:
            scale, end = (most / (height * width)) ** 0.5, np.floor if np.prod(rounded) > most else np.ceil
            rounded = [int(max(1, end(edge * scale / side))) * side for edge in (height, width)]
        image = Image.fromarray(item.pixels()).resize((rounded[1], rounded[0]), Image.Resampling.BICUBIC)
        content = [{"type": "image"}, {"type": "text", "text": hpsv3.INSTRUCTION.format(text_prompt=item.prompt)}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return self.processor(text=[text], images=[image], return_tensors="pt")

    @torch.no_grad()
    def mu(self, item: ScoreItem) -> float:
        inputs = self.inputs(item)
        ids = inputs["input_ids"]
        embedded = self.model.get_input_embeddings()(ids)
        seen = self.model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        embedded[ids == self.model.config.image_token_id] = seen
        positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
        hidden = self.model(inputs_embeds=embedded, position_ids=positions, output_hidden_states=True).hidden_states[-1]
        row = hidden[ids == self.processor.tokenizer.convert_tokens_to_ids("<|Reward|>")]
        for place, last in ((0, False), (3, False), (5, True)):
            row = linear(row, self.state[f"rm_head.{place}.weight"], self.state[f"rm_head.{place}.bias"])
            row = row if last else relu(row)
        return float(row[0, 0])


def subject(tiny_models: Any, folder: Path | str | None = None) -> Any:
    return build(kind="hpsv3", model=str(folder or tiny_models.hpsv3), base=tiny_models.qwen2)


def values(scorer: Any, items: list[ScoreItem]) -> list[float]:
    outcomes = scorer.score(items)
    assert all(isinstance(outcome, Score) for outcome in outcomes)
    return [outcome.detail["mu"] for outcome in outcomes]


def test_mu_equals_the_authors_way_of_running_it(tiny_models: Any, items: list[ScoreItem]) -> None:
    public = Public(tiny_models)
    expected = [public.mu(item) for item in items]
    assert values(subject(tiny_models), items) == pytest.approx(expected, abs=2e-4)
    assert max(expected) - min(expected) > 0.1, "the items differ"


def test_instruction_is_the_published_one() -> None:
    """Its length and digest, taken from the published string; one space more moves every score."""
    assert len(hpsv3.INSTRUCTION) == 2590
    assert (
        hashlib.sha256(hpsv3.INSTRUCTION.encode()).hexdigest()
        == "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"
    )


def test_tokens_are_those_of_the_whole_text(tiny_models: Any, items: list[ScoreItem]) -> None:
    model, public = hpsv3.load(tiny_models.hpsv3, tiny_models.qwen2, Device("cpu")), Public(tiny_models)
    for item in items:
        whole = public.inputs(item)["input_ids"][0].tolist()
        assert model._ids(str(item.prompt), whole.count(model._image_id)) == whole


@pytest.mark.parametrize("said", ["<|Reward|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>"])
def test_control_tokens_in_a_prompt_are_text(tiny_models: Any, said: str) -> None:
    model = hpsv3.load(tiny_models.hpsv3, tiny_models.qwen2, Device("cpu"))
    token = model._tokenizer.convert_tokens_to_ids(said)
    plain, injected = model._ids("a cat", 20), model._ids(f"a cat {said}", 20)
    assert injected.count(token) == plain.count(token)
    image = data.astronaut()
    found = model.rewards([image, image], [f"a cat {said}", "a cat"])
    assert found.shape == (2, 2), "one reward token an item"


def test_file_in_later_tensor_names_gives_the_same(tiny_models: Any, items: list[ScoreItem], tmp_path: Path) -> None:
    save_file(later_names(load_file(f"{tiny_models.hpsv3}/HPSv3.safetensors")), tmp_path / "HPSv3.safetensors")
    assert values(subject(tiny_models, tmp_path), items) == values(subject(tiny_models), items)


def test_bfloat16_keeps_head_and_rotary_frequencies_float32(tiny_models: Any) -> None:
    model = hpsv3.load(tiny_models.hpsv3, tiny_models.qwen2, Device("cpu", "bfloat16"))
    assert {p.dtype for p in model._model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model._head.parameters()} == {torch.float32}
    frequencies = {name: b for name, b in model._model.named_buffers() if "inv_freq" in name}
    assert len(frequencies) == 4
    assert {b.dtype for b in frequencies.values()} == {torch.float32}
    theta = model._model.config.text_config.rope_parameters["rope_theta"]
    expected = theta ** -(torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(model._model.language_model.rotary_emb.inv_freq, expected, rtol=1e-6, atol=0)


def test_extreme_sides_and_a_long_prompt_fail_alone(tiny_models: Any) -> None:
    image = data.astronaut()
    items = [
        ScoreItem(image=image, prompt="a cat"),
        ScoreItem(image=np.zeros((1, 201, 3), np.uint8), prompt="a cat"),
        ScoreItem(image=image, prompt="cat " * 2000),
    ]
    kept, thin, long = score_batch(subject(tiny_models), items)
    assert isinstance(kept, Score)
    assert isinstance(thin, ScoreFailure)
    assert isinstance(long, ScoreFailure)
    assert (thin.code, long.code) == ("invalid_item", "invalid_item")
    assert "201 x 1" in thin.message
    assert "reads 2048; shorten the prompt" in long.message


def test_files_of_another_model_are_refused(tiny_models: Any, tmp_path: Path) -> None:
    state = load_file(f"{tiny_models.hpsv3}/HPSv3.safetensors")
    embedded = "model.embed_tokens.weight"

    def folder(name: str, **changes: torch.Tensor | None) -> Path:
        made = {**state, **{key.replace("__", "."): value for key, value in changes.items()}}
        (tmp_path / name).mkdir()
        save_file({k: v for k, v in made.items() if v is not None}, tmp_path / name / "HPSv3.safetensors")
        return tmp_path / name

    (tmp_path / "empty").mkdir()
    for place, message in (
        (folder("headless", rm_head__5__weight=None), r"missing 5\.weight"),
        (folder("more", model__extra__weight=torch.zeros(2)), r"unexpected language_model\.extra\.weight"),
        (folder("short", model__norm__weight=None), r"missing language_model\.norm\.weight"),
        (folder("wide", model__norm__weight=torch.zeros(33)), r"mismatched language_model\.norm\.weight"),
        (folder("mute", **{embedded: None}), "no 'language_model.embed_tokens.weight'"),
        (tmp_path / "empty", "no such weights file"),
    ):
        with pytest.raises(SettingsError, match=message):
            subject(tiny_models, place)
    with pytest.raises(SettingsError, match="base is a 'qwen2_5_vl'"):
        build(kind="hpsv3", model=tiny_models.hpsv3, base=tiny_models.qwen)
