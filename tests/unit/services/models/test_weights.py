"""Weights that are missing, unsafe or another model's are refused by name, never half loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.models import transformers_clip, weights
from synod.errors import SettingsError


class Code:
    """Runs on reading where reading is not safe."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('ran')",))


def test_a_state_dict_is_read_from_all_three_forms(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0), "b": torch.ones(1)}
    save_file(state, tmp_path / "one.safetensors")
    torch.save(state, tmp_path / "two.pt")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "three.pt")
    for name in ("one.safetensors", "two.pt", "three.pt"):
        found = weights.read(tmp_path / name)
        assert {key: value.tolist() for key, value in found.items()} == {"a": [0.0, 1.0, 2.0], "b": [1.0]}


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"model": Code()}, tmp_path / "code.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    for name, message in (
        ("code.pt", "not weights that can be read safely"),
        ("list.pt", "no table of tensors"),
        ("text.pt", "not weights that can be read safely"),
        ("text.safetensors", "not weights that can be read safely"),
    ):
        with pytest.raises(SettingsError, match=f"{name}: {message}"):
            weights.read(tmp_path / name)
    for source in (str(tmp_path / "gone.pt"), str(tmp_path), "laion/a-hub-id"):
        with pytest.raises(SettingsError, match=f"{source}: no such weights file"):
            weights.file(source)


def test_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    weights.check_keys(tmp_path, {"a", "text.position_ids"}, {"a"})
    with pytest.raises(SettingsError, match=r"another model: missing a, b, c, d and 1 more; unexpected z\. Give"):
        weights.check_keys(tmp_path, {"z"}, {"a", "b", "c", "d", "e"})


def test_old_position_buffers_are_accepted(tiny_models: Any, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_models.clip, tmp_path / "clip"))
    file = copy / "model.safetensors"
    state = load_file(file)
    state["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(state, file, metadata={"format": "pt"})
    transformers_clip.load(str(copy), "cpu")
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(OSError, match="preprocessor_config"):
        transformers_clip.load(str(copy), "cpu")
