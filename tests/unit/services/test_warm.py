"""`warm` with a fake hub: only the download call is replaced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

from services import settings, warm
from services.__main__ import main
from synod.hub import digest, resolve

ROOT = Path(__file__).parents[3]


class Hub:
    """Serve repositories from folders: org/name at two commits, the first on the default branch."""

    def __init__(self, folder: Path, model: str) -> None:
        self.calls: list[tuple[str, str | None]] = []
        self._folder, self._model = folder, model

    def snapshot(self, name: str, *, revision: str | None = None, allow_patterns: list[str]) -> str:
        self.calls.append((name, revision))
        assert "*.safetensors" in allow_patterns
        if name == "acme/offline":
            raise LocalEntryNotFoundError("outgoing traffic has been disabled")
        if revision == "gone":
            raise RevisionNotFoundError("404", response=NOT_FOUND)
        snapshot = self._folder / name / "snapshots" / {None: "c0ffee", "v1": "beef"}[revision]
        if not snapshot.exists():
            shutil.copytree(self._model, snapshot)
            if revision == "v1":
                (snapshot / "config.json").write_text((snapshot / "config.json").read_text() + "\n")
        return str(snapshot)


NOT_FOUND = httpx.Response(404, request=httpx.Request("GET", "http://hub.example"))


@pytest.fixture
def hub(tmp_path: Path, tiny_models: Any, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub", tiny_models.dinov2)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot)
    return made


def config(tmp_path: Path, **models: str) -> Path:
    path = tmp_path / "service.toml"
    path.write_text("".join(f'[scorers.{name}]\nkind = "der"\nmodel = "{model}"\n' for name, model in models.items()))
    return path


def test_every_model_is_fetched_once_and_listed(
    hub: Hub, tmp_path: Path, tiny_models: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, one="acme/dino", same="acme/dino", old="acme/dino@v1", here=tiny_models.dinov2)
    assert main(["warm", str(path)]) == 0
    output = capsys.readouterr().out.splitlines()
    header = next(i for i, line in enumerate(output) if line.startswith("MODEL"))
    rows = [line.split() for line in output[header + 1 :]]
    assert [row[0] for row in rows] == ["one.model", "old.model", "here.model"]
    assert [row[2] for row in rows] == ["c0ffee", "beef", "local"]
    assert set(hub.calls) == {("acme/dino", None), ("acme/dino", "v1")}
    digests = [row[5] for row in rows]
    assert digests[0] == digests[2] == digest(tiny_models.dinov2)[:16]
    assert digests[1] != digests[0], "another revision, another digest"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("acme/offline", "HF_HUB_OFFLINE is set or the hub cannot be reached"),
        ("acme/dino@gone", "Correct the id or its @REVISION"),
    ],
)
def test_failed_download_does_not_stop_the_others(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, expected: str
) -> None:
    assert main(["warm", str(config(tmp_path, bad=source, good="acme/dino"))]) == 1
    said = capsys.readouterr()
    assert expected in said.err
    assert said.err.startswith("bad.model: ")
    assert "c0ffee" in said.out


def lose_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut off"), "SafetensorError"),
        (lambda folder: (folder / "config.json").write_text("{"), "JSONDecodeError"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "more.pt").write_bytes(b"cut off"), "UnpicklingError"),
        (lose_a_shard, "model-00002-of-00002.safetensors missing, of 2 shards"),
    ],
)
def test_corrupt_model_files_are_found(tmp_path: Path, tiny_models: Any, spoil: Any, expected: str) -> None:
    folder = Path(shutil.copytree(tiny_models.dinov2, tmp_path / "model"))
    assert warm.warm(warm.Model("der.model", str(folder))).error is None
    spoil(folder)
    assert expected in str(warm.warm(warm.Model("der.model", str(folder))).error)


def test_models_are_found_in_nested_settings(tmp_path: Path) -> None:
    path = tmp_path / "service.toml"
    path.write_text("""
        [scorers.fer]
        kind = "fer"
        finder = { family = "detector", detector = { family = "mask2former", model = "a/finder" } }
        embedder = { family = "facenet", weights = "face.pt" }
        [scorers.geneval]
        kind = "geneval"
        detector = { family = "mask2former", model = "a/detector" }
        color_model = { family = "open_clip", model = "ViT-L-14-quickgelu", pretrained = "openai" }
        [scorers.own]
        kind = "custom"
        load = "mine:load"
        needs = ["image"]
        models = { first = "a/first", second = "a/first" }
        options = { model = "no/model" }
    """)
    found = warm.models_of(settings.load(path, {}).scorers)
    assert [(one.setting, one.source, one.pretrained) for one in found] == [
        ("fer.finder.detector.model", "a/finder", None),
        ("fer.embedder.weights", "face.pt", None),
        ("geneval.detector.model", "a/detector", None),
        ("geneval.color_model.model", "ViT-L-14-quickgelu", "openai"),
        ("own.models.first", "a/first", None),
    ]


def test_unknown_open_clip_weights_are_an_error() -> None:
    message = warm.warm(warm.Model("geneval.color_model.model", "ViT-L-14-quickgelu", "opennai")).error
    assert "no weights 'opennai' of 'ViT-L-14-quickgelu'" in str(message)


def test_tokenizer_directory_without_weights_is_accepted(tmp_path: Path, tiny_models: Any) -> None:
    path = tmp_path / "service.toml"
    path.write_text(f"""
        [scorers.preferred]
        kind = "image_reward"
        model = "{tiny_models.image_reward}"
        tokenizer = "{tiny_models.text}"
    """)
    folder = Path(shutil.copytree(tiny_models.text, tmp_path / "tokenizer"))
    (folder / "model.safetensors").unlink()
    model, tokenizer = warm.models_of(settings.load(path, {}).scorers)
    assert (model.setting, model.configs_only) == ("preferred.model", False)
    assert (tokenizer.setting, tokenizer.configs_only) == ("preferred.tokenizer", True)
    assert warm.warm(model).error is None
    assert warm.warm(warm.Model("preferred.tokenizer", str(folder), configs_only=True)).error is None
    assert "holds no weights" in str(warm.warm(warm.Model("preferred.model", str(folder))).error)


def test_hub_repository_with_pt_weights_is_fetched_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[list[str]] = []

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        received.append(allow_patterns)
        (tmp_path / "med_config.json").write_text("{}")
        if "*.pt" in allow_patterns:
            (tmp_path / "ImageReward.pt").write_bytes(b"weights")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert (resolve("acme/reward") / "ImageReward.pt").is_file()
    assert [patterns[-1] for patterns in received] == ["*.safetensors", "*.bin", "*.pt"]
    received.clear()
    resolve("acme/reward", configs_only=True)
    assert len(received) == 1
    assert not {"*.safetensors", "*.bin", "*.pt"} & {*received[0]}
