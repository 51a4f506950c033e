"""Every family loads what the ordinary way loads, bit by bit, and refuses a directory with a part missing."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip as library
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from services.models import (
    blip2,
    dinov2,
    face,
    mask2former,
    open_clip,
    pretrained,
    semantic,
    text_encoder,
    transformers_clip,
    vlm,
    weights,
)
from services.models.cache import Device, frozen
from synod.errors import SettingsError

DEVICE = Device("cpu", "bfloat16")
KINDS: dict[str, Any] = {
    "text": transformers.AutoModel,
    "ernie": transformers.AutoModel,
    "blip2": transformers.Blip2ForImageTextRetrieval,
    "dinov2": transformers.Dinov2Model,
    "small_face": transformers.AutoModel,
    "clip": transformers.CLIPModel,
    "semantic": transformers.AutoModelForSemanticSegmentation,
    "mask2former": transformers.Mask2FormerForUniversalSegmentation,
    "qwen": transformers.AutoModelForImageTextToText,
    "llava": transformers.AutoModelForImageTextToText,
}
LOADERS: dict[str, Callable[[str], Any]] = {
    "text": lambda folder: text_encoder.load(folder, DEVICE),
    "ernie": lambda folder: text_encoder.load(folder, DEVICE),
    "blip2": lambda folder: blip2.load(folder, DEVICE),
    "dinov2": lambda folder: dinov2.load(folder, DEVICE),
    "small_face": lambda folder: face.embedder(family="small", model=folder, device=DEVICE),
    "clip": lambda folder: transformers_clip.load(folder, DEVICE),
    "open_clip": lambda folder: open_clip.load(folder, None, DEVICE),
    "semantic": lambda folder: semantic.load(folder, DEVICE, 1),
    "mask2former": lambda folder: mask2former.load(folder, DEVICE),
    "qwen": lambda folder: vlm.load(folder, DEVICE),
    "llava": lambda folder: vlm.load(folder, DEVICE),
}


@pytest.fixture
def copy(tiny_models: Any, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(getattr(tiny_models, name), tmp_path / name))


def same(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Equal parameters, and equal buffers, those that are in no file included."""
    for kind in ("named_parameters", "named_buffers"):
        found, wanted = (dict(getattr(module, kind)()) for module in (ours, theirs))
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert found[name].dtype == value.dtype, name
            assert torch.equal(found[name], value), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", KINDS)
def test_read_into_a_dtype_equals_read_and_then_cast(tiny_models: Any, name: str, dtype: Any) -> None:
    folder = Path(getattr(tiny_models, name))
    theirs = frozen(KINDS[name].from_pretrained(folder, dtype=torch.float32), Device("cpu", dtype))
    same(pretrained.load(KINDS[name], folder, Device("cpu", dtype)), theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_open_clip_built_without_memory_equals_the_ordinary_one(tiny_models: Any, dtype: Any) -> None:
    folder = tiny_models.open_clip
    theirs = library.create_model(f"local-dir:{folder}").to(getattr(torch, dtype)).eval().requires_grad_(False)
    ours = open_clip.load(folder, None, Device("cpu", dtype))
    same(ours._model, theirs)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    texts = torch.arange(32).view(2, 16) % 9
    with torch.inference_mode():
        # equal weights at other addresses: the order of a kernel's sums follows their alignment
        torch.testing.assert_close(ours._model.encode_image(pixels), theirs.encode_image(pixels))
        torch.testing.assert_close(ours._model.encode_text(texts), theirs.encode_text(texts))


def test_parameters_on_meta_spares_other_threads_and_buffers() -> None:
    made: list[torch.nn.Module] = []
    with weights.parameters_on_meta():
        mine = torch.nn.BatchNorm1d(2)
        thread = threading.Thread(target=lambda: made.append(torch.nn.Linear(2, 2)))
        thread.start()
        thread.join()
    assert (mine.weight.device.type, mine.running_mean.device.type) == ("meta", "cpu")
    assert made[0].weight.device.type == "cpu"
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


@pytest.mark.parametrize("name", LOADERS)
def test_a_missing_key_is_refused_by_every_family(copy: Callable[[str], Path], name: str) -> None:
    folder = copy(name)
    file = next(folder.glob("*.safetensors"))
    state = load_file(file)
    gone = max((key for key in state if "pooler" not in key and state[key].ndim > 1), key=len)
    del state[gone]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(SettingsError, match=r"missing|Missing") as refused:
        LOADERS[name](str(folder))
    assert str(folder) in str(refused.value)
    assert gone.rpartition(".")[2] in str(refused.value)


@pytest.mark.parametrize("name", LOADERS)
def test_damaged_and_absent_files_are_refused_by_every_family(copy: Callable[[str], Path], name: str) -> None:
    folder = copy(name)
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SettingsError, match=rf"{file}: not weights .* copy the file again if it was cut off"):
        LOADERS[name](str(folder))
    file.unlink()
    with pytest.raises(SettingsError, match=rf"{folder}: no weights"):
        LOADERS[name](str(folder))


@pytest.fixture
def sharded(tiny_models: Any, tmp_path: Path) -> Path:
    """DINOv2 in shards, as the library saves a model above its limit."""
    folder = tmp_path / "sharded"
    model = transformers.Dinov2Model.from_pretrained(tiny_models.dinov2)
    model.save_pretrained(folder, max_shard_size="40KB")
    shutil.copy(Path(tiny_models.dinov2) / "preprocessor_config.json", folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def test_shards_are_the_whole_model(sharded: Path, tiny_models: Any) -> None:
    images = [np.full((40, 40, 3), shade, np.uint8) for shade in (10, 200)]
    ours, whole = (dinov2.load(str(folder), "cpu").embed(images) for folder in (sharded, tiny_models.dinov2))
    assert np.array_equal(ours, whole)


def test_a_damaged_shard_is_named(sharded: Path) -> None:
    """And an index without one of its shards leaves no weights random."""
    index = sharded / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    with pytest.raises(SettingsError, match=rf"{shard}: not weights"):
        dinov2.load(str(sharded), "cpu")
    shard.unlink()
    message = rf"{sharded}: {shard.name} missing, of \d+ shards that model.safetensors.index.json names; copy or fetch"
    with pytest.raises(SettingsError, match=message):
        dinov2.load(str(sharded), "cpu")
    table["weight_map"] = {key: name for key, name in table["weight_map"].items() if name != shard.name}
    index.write_text(json.dumps(table))
    with pytest.raises(SettingsError, match="missing"):
        dinov2.load(str(sharded), "cpu")


@pytest.mark.parametrize("text", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{"])
def test_an_index_that_is_none_is_refused(sharded: Path, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(SettingsError, match=r"index\.json: no 'weight_map'"):
        dinov2.load(str(sharded), "cpu")


def test_an_encoder_without_a_pooler_gets_no_random_one(copy: Callable[[str], Path]) -> None:
    folder = copy("text")
    file = folder / "model.safetensors"
    state = {key: value for key, value in load_file(file).items() if "pooler" not in key}
    state["cls.predictions.bias"] = torch.zeros(3)  # published encoders carry such heads
    save_file(state, file, metadata={"format": "pt"})
    encoder = text_encoder.load(str(folder), "cpu")
    assert np.isfinite(encoder.encode(["a cat"], "mean")).all()
    with pytest.raises(ValueError, match="no pooler"):
        encoder.encode(["a cat"], "pooler")


def test_a_torch_file_of_weights_is_read_as_well(copy: Callable[[str], Path]) -> None:
    folder = copy("clip")
    whole = transformers_clip.load(str(folder), "cpu")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    found = transformers_clip.load(str(folder), "cpu")
    assert found.scale == whole.scale
    assert np.array_equal(found.text_features(["a cat"]), whole.text_features(["a cat"]))
