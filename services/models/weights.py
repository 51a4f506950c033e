"""Weights files, read without running code from them, and what a loader says of one that does not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file

from synod.errors import SettingsError

_BUFFERS: Final = ("position_ids",)  # old checkpoints carry these; they hold no weights
_TOLD: Final = 4


def file(source: str) -> Path:
    """The weights file of a settings' source, which is no hub id. Raises SettingsError when there is none."""
    if not Path(source).is_file():
        raise SettingsError(f"{source}: no such weights file; give the path of a .safetensors, .pt, .pth or .bin file")
    return Path(source)


def read(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` or `torch.save` file on the CPU, by name; those under `state_dict` where there is
    one. Raises SettingsError for a file that is none."""
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # the two readers raise a dozen kinds, torch's own among them
        told = str(error).partition("\n")[0]
        raise SettingsError(f"{file}: not weights that can be read safely ({told}); give a table of tensors") from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SettingsError(f"{file}: no table of tensors; give a state dict, or a table with one under 'state_dict'")
    return dict(state)


def load_into(module: torch.nn.Module, state: Mapping[str, torch.Tensor], where: Path) -> None:
    """Fills the module, every key and no other. Raises SettingsError that names keys or shapes which do not fit."""
    wanted = module.state_dict()
    check_keys(where, state, wanted)
    misshapen = [key for key, value in wanted.items() if state[key].shape != value.shape]
    check_complete(where, {"mismatched_keys": misshapen})
    module.load_state_dict({key: state[key] for key in wanted})


def check_keys(where: Path, found: Collection[str], wanted: Collection[str]) -> None:
    """Raises SettingsError when a key is missing or unexpected."""
    check_complete(where, {"missing_keys": set(wanted) - set(found), "unexpected_keys": set(found) - set(wanted)})


def check_complete(where: Path, info: Mapping[str, Any]) -> None:
    """Raises SettingsError when transformers' loading info tells of keys that are missing, unexpected or misshapen:
    the library would go on with random weights."""
    wrong = {kind: _names(info.get(f"{kind}_keys", ())) for kind in ("missing", "unexpected", "mismatched")}
    told = "; ".join(f"{kind} {_some(names)}" for kind, names in wrong.items() if names)
    if told:
        raise SettingsError(f"{where}: these weights are of another model: {told}. Give the model this family reads")


def _names(keys: Collection[Any]) -> list[str]:
    names = (key if isinstance(key, str) else str(key[0]) for key in keys)
    return sorted(name for name in names if not name.endswith(_BUFFERS))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more
