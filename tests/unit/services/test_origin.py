"""An origin changes with whatever may change a value, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from services import origin as module
from services.origin import origin
from services.scorers.der import DerSettings
from services.scorers.fer import FerSettings, MtcnnFinder, SmallFaceEmbedder
from services.settings_types import ServingSettings


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def der(model: Path, **changes: object) -> DerSettings:
    return DerSettings.model_validate({"kind": "der", "model": str(model), **changes})


def test_it_follows_the_models_content_not_its_place(model: Path, tmp_path: Path) -> None:
    before = origin(der(model))
    copy = shutil.copytree(model, tmp_path / "copy")
    assert origin(der(copy)) == before
    (copy / "model.safetensors").write_bytes(b"retrain")
    assert origin(der(copy)) != before
    (model / "config.json").write_text('{"a": 1}')
    assert origin(der(model)) != before


def test_it_follows_settings_that_change_values(model: Path) -> None:
    before = origin(der(model))
    for serving in ({"device": "cuda"}, {"dtype": "bfloat16"}, {"compile": True}):
        assert origin(der(model, serving=serving)) != before
    assert origin(der(model, serving={"replicas": 3, "max_batch_images": 7}, golden_tolerance=0.5)) == before


def test_models_inside_tables_count(model: Path) -> None:
    def fer() -> FerSettings:
        embedder = SmallFaceEmbedder(family="small", model=str(model))
        return FerSettings(kind="fer", finder=MtcnnFinder(family="mtcnn"), embedder=embedder)

    before = origin(fer())
    (model / "model.safetensors").write_bytes(b"retrain")
    assert origin(fer()) != before


def test_it_follows_the_installed_libraries(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise module.metadata.PackageNotFoundError(name)

    found = [origin(der(model))]
    for version in (lambda name: "0.0.1", missing):
        monkeypatch.setattr(module.metadata, "version", version)
        found.append(origin(der(model)))
    assert len(set(found)) == 3


def test_a_hub_id_counts_by_its_name() -> None:
    small, base = (DerSettings(kind="der", model=f"facebook/dinov2-{size}") for size in ("small", "base"))
    assert origin(small) != origin(base)
    assert origin(small) == origin(small.model_copy(update={"serving": ServingSettings(replicas=2)}))
