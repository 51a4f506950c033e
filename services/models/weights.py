"""Weights files: read without running code from them, checked, and loaded into modules without a second copy."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file

from synod.errors import SettingsError

# Buffers that some versions of the libraries save and others compute: they hold no weights.
_BUFFERS: Final = ("position_ids", "relative_position_index", "num_batches_tracked", "rotary_emb.inv_freq")
_MAX_NAMES: Final = 4


def file(source: str) -> Path:
    """Return the weights file of a source, which is not a hub id. Raises SettingsError if there is none."""
    if not Path(source).is_file():
        raise SettingsError(f"{source}: no such weights file; give the path of a .safetensors, .pt, .pth or .bin file")
    return Path(source)


def read(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.safetensors` or `torch.save` file on the CPU, by name (under `state_dict` if any).

    Each tensor has its own memory instead of a map of the file: it is freed alone, and overwriting the file does not
    change a loaded model. Raises SettingsError for any other file.
    """
    safe = file.suffix == ".safetensors"
    try:
        state = load_file(file, backend="pread") if safe else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # the two readers raise a dozen kinds, torch's own among them
        raise unreadable(file, error) from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SettingsError(f"{file}: no table of tensors; give a state dict, or a table with one under 'state_dict'")
    return dict(state)


def unreadable(file: Path, error: Exception) -> SettingsError:
    """Return the error for a file that its reader refuses: cut off, or of another format."""
    cause = str(error).partition("\n")[0]
    reason = f"{file}: not weights that can be read safely ({cause})"
    return SettingsError(f"{reason}; give a table of tensors, or copy the file again if it was cut off")


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Build the modules inside without memory for their parameters; buffers (masks, positions) are built as always.

    It acts on the calling thread alone. Fill the module by `load_into`.
    """
    thread = threading.get_ident()

    def moved(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> torch.nn.Parameter | None:
        if parameter is None or threading.get_ident() != thread:
            return None
        return torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    handle = torch.nn.modules.module.register_module_parameter_registration_hook(moved)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def load_into(
    module: torch.nn.Module, state: dict[str, torch.Tensor], where: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Make the state's tensors, in `dtype`, the module's own: every key and no other.

    Each entry of `state` is replaced by what it becomes, so that there is never more than one tensor twice. Raises
    SettingsError that names keys or shapes which do not fit.
    """
    wanted = module.state_dict()
    check_keys(where, state, wanted)
    misshapen = [key for key, value in wanted.items() if key in state and state[key].shape != value.shape]
    check_complete(where, {"mismatched_keys": misshapen})
    for key, value in state.items():  # a copy has torch's own alignment, which a file's reader need not give
        state[key] = value.to(dtype, copy=True) if value.is_floating_point() else value
    module.load_state_dict({key: state[key] for key in wanted if key in state}, strict=False, assign=True)


def check_keys(where: Path, found: Collection[str], wanted: Collection[str]) -> None:
    """Raise SettingsError if a key is missing or unexpected."""
    check_complete(where, {"missing_keys": set(wanted) - set(found), "unexpected_keys": set(found) - set(wanted)})


def check_complete(where: Path, info: Mapping[str, Any]) -> None:
    """Raise SettingsError if transformers' loading info lists missing, unexpected or mismatched keys: the library
    would continue with random weights."""
    wrong = {kind: _names(info.get(f"{kind}_keys", ())) for kind in ("missing", "unexpected", "mismatched")}
    problems = "; ".join(f"{kind} {_some(names)}" for kind, names in wrong.items() if names)
    if problems:
        raise SettingsError(f"{where}: these weights are of another model: {problems}. Give a model of this family")


def _names(keys: Collection[Any]) -> list[str]:
    names = (key if isinstance(key, str) else str(key[0]) for key in keys)
    return sorted(name for name in names if not name.endswith(_BUFFERS))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
