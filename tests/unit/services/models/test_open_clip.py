"""open_clip's names and weights: what it only warns of is refused, and the right name runs the right activation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import open_clip as library
import pytest
import torch
from open_clip import factory, pretrained
from PIL import Image

from services import warm
from services.models import open_clip
from synod.errors import SettingsError

OPENAI = [(name, tag) for name, tag in library.list_pretrained() if tag == "openai"]
IMAGE = np.random.default_rng(0).integers(0, 255, (48, 32, 3), dtype=np.uint8)
LOADS: tuple[Any, ...] = (open_clip.load, open_clip.load_file)
CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of an architecture known as 'tiny' and 'tiny-quickgelu', which open_clip has under the tag 'openai'."""
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", [*factory._MODEL_CONFIG_PATHS])
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    for name, more in (("tiny", {}), ("tiny-quickgelu", {"quick_gelu": True})):
        (tmp_path / f"{name}.json").write_text(json.dumps({**CONFIG, **more}))
    library.add_model_config(tmp_path)
    tag = {"openai": pretrained._pcfg("https://example.invalid/tiny.pt", quick_gelu=True)}
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny", tag)
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-quickgelu", tag)
    file = tmp_path / "weights.pt"
    torch.manual_seed(0)
    state = library.create_model("tiny-quickgelu").state_dict()
    torch.save({key: (8 if ".mlp." in key else 1) * value for key, value in state.items()}, file)
    for place in (factory, library):
        monkeypatch.setattr(place, "download_pretrained", lambda *_, **__: str(file))
    return file


def features(model: open_clip.OpenClip) -> list[float]:
    return [*model.image_features([IMAGE])[0].tolist(), *model.text_features(["a red ball"])[0].tolist()]


def directly(name: str, file: Path) -> list[float]:
    model, _, prepare = library.create_model_and_transforms(name, load_weights=False)
    model.load_state_dict(torch.load(file, weights_only=True))
    model.eval()
    with torch.no_grad():
        image = model.encode_image(prepare(Image.fromarray(IMAGE))[None], normalize=True)
        text = model.encode_text(library.get_tokenizer(name)(["a red ball"]), normalize=True)
    return [*image[0].tolist(), *text[0].tolist()]


@pytest.mark.parametrize("by", ["tag", "file"])
def test_quickgelu_name_computes_with_quickgelu(weights: Path, by: str) -> None:
    expected = directly("tiny-quickgelu", weights)
    ours = open_clip.load("tiny-quickgelu", "openai" if by == "tag" else str(weights), "cpu")
    assert features(ours) == pytest.approx(expected, abs=1e-6)
    assert features(ours) != pytest.approx(directly("tiny", weights), abs=1e-3)


def test_gelu_name_is_refused_for_quickgelu_tag(weights: Path) -> None:
    with pytest.raises(SettingsError, match=r"'openai' need QuickGELU.*Give the name 'tiny-quickgelu'"):
        open_clip.load("tiny", "openai", "cpu")


@pytest.mark.parametrize("place", ["openai_tiny.pt", "models--some--tiny.openai/snapshots/0a/model.pt"])
def test_file_known_by_its_name_is_refused(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setitem(pretrained._PRETRAINED["tiny"]["openai"], "hf_hub", "some/tiny.openai/")
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(weights.read_bytes())
    for load in LOADS:
        with pytest.raises(SettingsError, match=r"by its name open_clip's 'openai'.*'tiny-quickgelu'"):
            load("tiny", str(file), "cpu")
    open_clip.load_file("tiny-quickgelu", str(file), "cpu")


def test_configuration_next_to_a_file_decides(weights: Path) -> None:
    config = weights.parent / open_clip.CONFIG
    config.write_text(json.dumps({"model_cfg": {**CONFIG, "quick_gelu": True}}))
    with pytest.raises(SettingsError, match=f"by the {open_clip.CONFIG} next to it.*'tiny-quickgelu'"):
        open_clip.load_file("tiny", str(weights), "cpu")
    config.write_text(json.dumps({"model_cfg": CONFIG}))
    named = weights.rename(weights.with_name("openai.pt"))
    assert features(open_clip.load_file("tiny", str(named), "cpu")) == pytest.approx(directly("tiny", named), abs=1e-6)


@pytest.mark.parametrize("name", ["tiny", "tiny-quickgelu"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("form", ["archive", "state dict"])
def test_openai_file_is_refused(weights: Path, tmp_path: Path, name: str, form: str) -> None:
    """By another file name: the content decides."""
    file = tmp_path / "clip.pt"
    if form == "archive":
        jit: Any = torch.jit
        jit.save(jit.trace(torch.nn.Linear(1, 1), torch.zeros(1)), str(file))
    else:
        state = torch.load(weights, weights_only=True)
        torch.save({**state, **{key: torch.tensor(1) for key in open_clip._OPENAI_KEYS}}, file)
    for load in LOADS:
        with pytest.raises(SettingsError, match=r"OpenAI published.*'tiny-quickgelu' with pretrained = 'openai'"):
            load(name, str(file), "cpu")


@pytest.mark.parametrize(("name", "tag"), OPENAI)
def test_openai_weights_have_one_name_in_open_clip(name: str, tag: str) -> None:
    """Of the library's own tables: no name but the -quickgelu one passes, and that one does."""
    if name.endswith("-quickgelu"):
        open_clip.check(name, tag)
        return
    for spelled in (name, name.replace("ViT-L-14", "ViT-L/14")):
        with pytest.raises(SettingsError, match=f"Give the name '{re.escape(name)}-quickgelu'"):
            open_clip.check(spelled, tag)
    assert "QuickGELU" in str(warm.warm(warm.Model("geneval.color_model.model", name, tag)).error)


def test_gelu_weights_pass_under_their_name() -> None:
    open_clip.check("ViT-B-32", "laion2b_s34b_b79k")
    open_clip.check("hf-hub:some/clip", None)


@pytest.mark.parametrize(
    ("source", "tag", "message"),
    [
        ("ViT-B-32", None, "'ViT-B-32' without 'pretrained' would have random weights.*laion2b_s34b_b79k"),
        ("ViT-B-32", "nowhere", "ViT-B-32: no weights 'nowhere'; open_clip has openai, "),
        ("hf-hub:some/clip", "openai", "pretrained = 'openai': 'hf-hub:some/clip' has weights of its own"),
    ],
)
def test_missing_and_ignored_weights_are_refused(source: str, tag: str | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        open_clip.load(source, tag, "cpu")


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / open_clip.CONFIG).write_text(json.dumps({"model_cfg": CONFIG}))
    with pytest.raises(SettingsError, match="no weights; give a directory that holds some"):
        open_clip.load(str(tmp_path), None, "cpu")
