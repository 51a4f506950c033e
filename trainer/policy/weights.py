"""Read and write the weights of a model directory: safetensors or .bin, one file or sharded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from synod.errors import SettingsError

NAMES = ("pytorch_model.safetensors", "model.safetensors", "pytorch_model.bin")


def directory_of(source: str | Path) -> Path:
    """Return the given directory, or the download of a hub id. Raises SettingsError."""
    if Path(source).exists():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        message = str(error).partition("\n")[0]
        raise SettingsError(f"model '{source}' is not a directory and cannot be downloaded ({message})") from None


def read_weights(module: nn.Module, directory: Path) -> None:
    """Load the directory's weights into `module`.

    Raises SettingsError for no file, and for missing or unknown keys.
    """
    state = state_dict(directory)
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in own.keys() & state.keys()
        if own[k].shape != state[k].shape
    ]
    for what, keys in (("lacks", missing), ("has unknown keys", extra), ("has other shapes:", sorted(shapes))):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise SettingsError(
                f"{directory} {what} {', '.join(keys[:3])}{more}; give a {type(module).__name__} of this config.json"
            )
    module.load_state_dict(state)


def read_config(directory: Path) -> dict[str, Any]:
    """Return the directory's config.json. Raises SettingsError if it is not a JSON object."""
    try:
        stored = json.loads((directory / "config.json").read_text())
    except OSError as error:
        raise SettingsError(f"{directory} has no config.json ({error.strerror}); give a model directory") from None
    except ValueError as error:
        raise SettingsError(
            f"{directory}/config.json is not valid JSON ({error}); write or download it again"
        ) from None
    if not isinstance(stored, dict):
        raise SettingsError(f"{directory}/config.json holds a {type(stored).__name__}, expected an object")
    return stored


def state_dict(directory: Path) -> dict[str, Tensor]:
    """Return all tensors of the directory by key, on the CPU; .bin files are read with weights_only.

    If there is an index file (`NAME.index.json`), the shards that it names are read. Raises SettingsError.
    """
    for name in NAMES:
        index = directory / f"{name}.index.json"
        if index.exists():
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            return {key: value for shard in shards for key, value in _read(directory / shard).items()}
        if (directory / name).exists():
            return _read(directory / name)
    raise SettingsError(f"{directory} has no weights; give one of {', '.join(NAMES)}")


def write_weights(module: nn.Module, directory: Path) -> None:
    """Write one safetensors file, which `read_weights` reads."""
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, directory / NAMES[0])


def _read(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise SettingsError(f"{path.parent} lacks {path.name}, which its index names; download it again")
    if path.suffix == ".safetensors":
        return load_file(path)
    loaded: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded
