"""Reading and refusing weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from synod.errors import SettingsError
from trainer.policy.weights import (
    check_weights,
    directory_of,
    parameters_on_meta,
    parse_config,
    read_config,
    read_weights,
    tensors,
    write_weights,
)


class Opaque:
    """An object that weights_only refuses to unpickle."""


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


def fresh() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_write_and_read(module: nn.Module, tmp_path: Path) -> None:
    write_weights(module.state_dict(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["pytorch_model.safetensors"]
    read_weights(again := fresh(), tmp_path)
    assert same(again, module)


def test_a_module_in_channels_last_is_written(tmp_path: Path) -> None:
    module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    write_weights(module.state_dict(), tmp_path)
    assert torch.equal(dict(tensors(tmp_path))["weight"], module.weight)


@pytest.mark.parametrize("name", ["pytorch_model.safetensors", "model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("sharded", [False, True])
def test_every_form_of_a_directory(module: nn.Module, tmp_path: Path, name: str, sharded: bool) -> None:
    state = module.state_dict()
    save = torch.save if name.endswith(".bin") else save_file
    if sharded:
        stem, _, suffix = name.rpartition(".")
        shards = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
        weight_map = {key: shards[i % 2] for i, key in enumerate(state)}
        (tmp_path / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        for shard in shards:
            save({key: state[key] for key in state if weight_map[key] == shard}, tmp_path / shard)
    else:
        save(state, tmp_path / name)
    read_weights(again := fresh(), tmp_path)
    assert same(again, module)


def test_bin_files_are_read_with_weights_only(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1), "more": Opaque()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        dict(tensors(tmp_path))


def test_keys_and_shapes_must_match(module: nn.Module, tmp_path: Path) -> None:
    def written(**changes: torch.Tensor | None) -> Path:
        state = {**module.state_dict(), **{key.replace("_", "."): value for key, value in changes.items()}}
        save_file({key: value for key, value in state.items() if value is not None}, tmp_path / "model.safetensors")
        return tmp_path

    with pytest.raises(SettingsError, match=r"lacks 0\.bias, 1\.weight; give a Sequential"):
        read_weights(fresh(), written(**{"0_bias": None, "1_weight": None}))
    with pytest.raises(SettingsError, match=r"has unknown keys a, b, c and 1 more"):
        read_weights(fresh(), written(a=torch.ones(1), b=torch.ones(1), c=torch.ones(1), d=torch.ones(1)))
    with pytest.raises(SettingsError, match=r"other shapes: 0\.bias \(5,\) for \(4,\)"):
        read_weights(again := fresh(), written(**{"0_bias": torch.ones(5)}))
    kept = {key: value.clone() for key, value in again.state_dict().items()}
    with pytest.raises(SettingsError):
        read_weights(again, tmp_path)
    assert all(torch.equal(kept[key], value) for key, value in again.state_dict().items())  # nothing half-loaded


def test_a_directory_without_weights(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"has no weights; give one of pytorch_model\.safetensors"):
        dict(tensors(tmp_path))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "part-1.bin"}}))
    with pytest.raises(SettingsError, match=r"lacks part-1\.bin"):
        dict(tensors(tmp_path))


def test_a_directory_or_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id may pin a revision; code is never downloaded, and for a config no weights."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    calls: list[tuple[str, str | None, list[str]]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((name, revision, allow_patterns))
        (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)

    assert directory_of(tmp_path) == tmp_path
    with pytest.raises(SettingsError, match="no/such/place/at/all' is not a directory and cannot be downloaded"):
        directory_of("no/such/place/at/all")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert directory_of("showlab/show-o@v1", configs_only=True) == tmp_path
    assert directory_of("showlab/show-o") == tmp_path
    (config, safetensors, binary) = calls
    assert config == ("showlab/show-o", "v1", ["*.json", "*.jinja", "*.txt", "*.model"])
    assert safetensors == ("showlab/show-o", None, [*config[2], "*.safetensors"])
    assert binary == ("showlab/show-o", None, [*config[2], "*.bin"])

    def offline(name: str, **_: object) -> str:
        raise LocalEntryNotFoundError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(SettingsError, match=r"tokenizer 'a/b' .*cannot be downloaded \(no network\)\. HF_HUB_OFFLINE"):
        directory_of("a/b", what="tokenizer")


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[1]", "holds a list")])
def test_a_config_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=r"no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{}", "has no 'weight_map' from keys to shards"),
        ('{"weight_map": {}}', "has no 'weight_map'"),
        ('{"weight_map": ["a.bin"]}', "has no 'weight_map'"),
        ('{"weight_map": {"a": 1}}', "has no 'weight_map'"),
        ('{"weight_map": {"a": "../a.bin"}}', r"lacks \.\./a\.bin, which pytorch_model\.bin\.index\.json names"),
        ("{", "is not valid JSON"),
    ],
)
def test_an_index_that_cannot_be_used(tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / "a.bin").touch()
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "pytorch_model.bin.index.json").write_text(index)
    with pytest.raises(SettingsError, match=message):
        read_weights(fresh(), directory)


@pytest.mark.parametrize("name", ["pytorch_model.safetensors", "pytorch_model.bin"])
def test_a_file_that_cannot_be_read(module: nn.Module, tmp_path: Path, name: str) -> None:
    save = torch.save if name.endswith(".bin") else save_file
    save(module.state_dict(), tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(SettingsError, match=rf"{name} cannot be read safely \(.+\); download it again"):
        check_weights(fresh(), tmp_path)


def test_a_bin_file_of_another_kind(module: nn.Module, tmp_path: Path) -> None:
    for stored in ([torch.ones(1)], {"state_dict": module.state_dict()}):
        torch.save(stored, tmp_path / "pytorch_model.bin")
        with pytest.raises(SettingsError, match="is not a table of tensors"):
            check_weights(fresh(), tmp_path)
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(SettingsError, match="cannot be read safely"):
        check_weights(fresh(), tmp_path)


def test_integers_are_not_weights(module: nn.Module, tmp_path: Path) -> None:
    state = module.state_dict()
    save_file({**state, "0.bias": torch.ones(4, dtype=torch.int64)}, tmp_path / "model.safetensors")
    again = fresh()
    kept = {key: value.clone() for key, value in again.state_dict().items()}
    with pytest.raises(SettingsError, match=r"has 0\.bias as torch\.int64"):
        read_weights(again, tmp_path)
    assert all(torch.equal(kept[key], value) for key, value in again.state_dict().items())


class WithBuffers(nn.Module):
    """Parameters, a stored integer buffer, and buffers that no file has."""

    rates: torch.Tensor
    scale: torch.Tensor
    powers: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 2.0))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("rates", torch.arange(4) ** -0.5 + 1, persistent=False)
        self.register_buffer("powers", 2 ** torch.arange(3))
        self.register_buffer("scale", nn.init.constant_(torch.empty(2), 3.0), persistent=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None])
def test_a_module_built_without_memory_is_the_same(tmp_path: Path, dtype: torch.dtype | None) -> None:
    """Computed buffers have their values, integers keep their type, and parameters whether they are trained."""
    built = WithBuffers()
    write_weights(built.state_dict(), tmp_path)
    with parameters_on_meta():
        module = WithBuffers()
    assert module.weight.is_meta
    read_weights(module, tmp_path, dtype)
    assert torch.equal(module.rates, built.rates)
    assert module.scale.tolist() == [3.0, 3.0]
    assert (module.powers.dtype, module.powers.tolist()) == (torch.int64, [1, 2, 4])
    assert (module.weight.dtype, module.weight.tolist()) == (dtype or torch.float32, [2.0] * 3)
    assert (module.weight.requires_grad, module.frozen.requires_grad) == (True, False)
    assert not WithBuffers().weight.is_meta


@pytest.mark.parametrize("name", ["pytorch_model.safetensors", "pytorch_model.bin"])
def test_a_file_written_again_changes_no_loaded_module(module: nn.Module, tmp_path: Path, name: str) -> None:
    save = torch.save if name.endswith(".bin") else save_file
    save(module.state_dict(), tmp_path / name)
    read_weights(again := fresh(), tmp_path)
    size = (tmp_path / name).stat().st_size
    with (tmp_path / name).open("r+b") as file:
        file.write(bytes(size))
    assert same(again, module)


def test_initial_values_outside_are_drawn_as_always() -> None:
    torch.manual_seed(0)
    expected = nn.Linear(3, 4).weight
    torch.manual_seed(0)
    with parameters_on_meta():
        nn.Linear(3, 4)
    assert torch.equal(nn.Linear(3, 4).weight, expected)


@dataclass(frozen=True)
class Shape:
    width: int
    names: tuple[str, ...] = ()


def test_fields_of_a_config_are_typed() -> None:
    assert parse_config(Shape, {"width": 3, "names": ["a"], "more": 1}, "x") == Shape(3, ("a",))
    for fields, message in (
        ({}, "x: width: Field required"),
        ({"width": "3"}, r"x: width: Input should be a valid integer \(given: '3'\)"),
        ({"width": 3, "names": [1]}, r"x: names\.0: Input should be a valid string"),
    ):
        with pytest.raises(SettingsError, match=message):
            parse_config(Shape, fields, "x")


@pytest.mark.parametrize("name", ["pytorch_model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("piece", [1, 5, 7, 24, 2**23])
def test_pieces_make_the_whole(tmp_path: Path, name: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes whose rows divide a piece or do not, also without rows and without elements."""
    monkeypatch.setattr("trainer.policy.weights._PIECE", piece)
    state = {str(shape): torch.randn(shape) for shape in ((), (1,), (9,), (8, 3), (3, 8), (2, 3, 4), (0, 3), (3, 0))}
    state["integers"] = torch.arange(30).view(10, 3)
    (torch.save if name.endswith(".bin") else save_file)(state, tmp_path / name)
    found = dict(tensors(tmp_path))
    assert found.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(found[key], value)
        assert found[key].dtype == value.dtype
    half = dict(tensors(tmp_path, torch.bfloat16))
    for key, value in state.items():
        expected = value.bfloat16() if value.is_floating_point() else value
        assert torch.equal(half[key], expected)
        assert half[key].dtype == expected.dtype
