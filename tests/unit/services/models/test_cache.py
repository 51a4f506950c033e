from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from services.models import cache, dinov2
from services.models.cache import Device
from synod import hub


def test_digest_is_of_the_content_not_of_the_path(tiny_models: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_models.dinov2, copy)
    before = hub.digest(tiny_models.dinov2)
    assert hub.digest(str(copy)) == before
    (copy / "README.md").write_text("not weights, not configuration")
    assert hub.digest(str(copy)) == before
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert hub.digest(str(copy)) != before


def test_digest_distinguishes_names_and_boundaries_apart(tmp_path: Path) -> None:
    digests = set()
    for i, files in enumerate([{"a.json": "xy"}, {"b.json": "xy"}, {"a.json": "x", "b.json": "y"}, {"a.json": ""}]):
        folder = tmp_path / str(i)
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        digests.add(hub.digest(str(folder)))
    assert len(digests) == 4


def test_two_scorers_share_a_module_by_content_and_device(tiny_models: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_models.dinov2, copy)
    loaded: list[Path] = []

    def load(path: Path) -> object:
        loaded.append(path)
        return object()

    first = cache.shared("test", tiny_models.dinov2, "cpu", load)
    assert cache.shared("test", str(copy), "cpu", load) is first
    assert cache.shared("test", tiny_models.dinov2, "cuda:0", load) is not first
    assert cache.shared("other", tiny_models.dinov2, "cpu", load) is not first
    assert len(loaded) == 3
    model = dinov2.load(tiny_models.dinov2, "cpu")
    assert dinov2.load(str(copy), Device("cpu")) is model, "a bare name is float32"
    for device in (Device("cpu", "bfloat16"), Device("cpu", compile=True)):
        assert dinov2.load(tiny_models.dinov2, device) is not model
    assert not model._model.training
    assert not any(parameter.requires_grad for parameter in model._model.parameters())


@pytest.fixture
def hub_cache(tiny_models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache as an earlier download leaves it, and no network."""
    repository = tmp_path / "models--acme--dino"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    shutil.copytree(tiny_models.dinov2, repository / "snapshots" / "c0ffee")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return repository


def test_a_hub_id_is_its_snapshot_and_offline_is_obeyed(tiny_models: Any, hub_cache: Path) -> None:
    assert hub.resolve("acme/dino") == hub_cache / "snapshots" / "c0ffee"
    assert hub.digest("acme/dino") == hub.digest(tiny_models.dinov2)
    assert dinov2.load("acme/dino", "cpu") is dinov2.load(tiny_models.dinov2, "cpu")
    with pytest.raises(huggingface_hub.errors.LocalEntryNotFoundError):
        hub.resolve("acme/other")


def test_device_is_the_settings_or_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.pick_device("cuda:1") == "cuda:1"
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(cache.torch.cuda, "is_available", lambda available=available: available)
        assert cache.pick_device(None) == expected
