"""Model directories in transformers' layout: checked file by file, and read straight into the dtype that they run in.

transformers maps a whole file and casts its tensors in addition: 1.5 times a float32 file for a bfloat16 model. It only
warns when keys are missing, and goes on with random weights. Here tensors are read one at a time, and such a directory
is refused by name.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from transformers import AutoConfig

from services.models import weights
from services.models.cache import Device, as_device, frozen
from synod.errors import SettingsError

# In the order in which transformers looks for them.
_NAMES: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def load(
    kind: Any, folder: Path, device: Device | str, *run: str, optional: str | None = None, heads: bool = False
) -> Any:
    """Return the model of class `kind` in a directory, as `cache.frozen` makes it.

    `optional` names a submodule that is None where the files have none of its keys, as published encoders lack the
    pooler. With `heads` the files may have keys that the class does not read: the heads of pretraining. Raises
    SettingsError for a file that is missing, cut off or another model's.
    """
    folder, device = Path(folder), as_device(device)
    dtype = getattr(torch, device.dtype)
    found = files(folder)
    source: dict[str, Any] = {}
    with ExitStack() as stack:
        if found[0].suffix == ".safetensors":
            config = AutoConfig.from_pretrained(folder)
            kind = _of(kind, config)
            source = {"config": config, "state_dict": _slices(found, stack)}
        model, info = kind.from_pretrained(
            None if source else folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **source
        )
    if optional is not None and (part := getattr(model, optional, None)) is not None:
        keys = {f"{optional}.{key}" for key in part.state_dict()}
        if keys <= set(info["missing_keys"]):
            setattr(model, optional, None)
            info["missing_keys"] = set(info["missing_keys"]) - keys
    if heads:
        info["unexpected_keys"] = ()
    weights.check_complete(folder, info)
    return frozen(model, device, *run)


def tensor(folder: Path, key: str) -> torch.Tensor:
    """Return one tensor of a directory's weights in its stored dtype. Raises SettingsError if there is none."""
    for file in files(folder):
        if file.suffix == ".safetensors":
            with _opened(file) as opened:
                if key in set(opened.keys()):
                    found: torch.Tensor = opened.get_tensor(key)
                    return found
        elif key in (state := weights.read(file)):
            return state[key]
    weights.check_complete(folder, {"missing_keys": (key,)})
    raise AssertionError("unreachable")


def files(folder: Path) -> list[Path]:
    """Return the weights files that transformers would read from a directory.

    Raises SettingsError if there are none, or if a shard that an index names is missing.
    """
    name = next((name for name in _NAMES if (folder / name).is_file()), None)
    if name is None:
        raise SettingsError(f"{folder}: no weights ({' or '.join(_NAMES)}); copy or fetch the whole model directory")
    return shards(folder / name) if name.endswith(".index.json") else [folder / name]


def shards(index: Path) -> list[Path]:
    """Return the files that an index names, all of which are there. Raises SettingsError."""
    found = [index.parent / shard for shard in sorted(set(_weight_map(index).values()))]
    absent = [file.name for file in found if not file.is_file()]
    if absent:
        raise SettingsError(
            f"{index.parent}: {', '.join(absent)} missing, of {len(found)} shards that {index.name} names; copy or "
            "fetch the whole model directory again"
        )
    return found


def _of(kind: Any, config: Any) -> Any:
    """Return the class itself, or the one that an Auto class chooses for a config."""
    mapping = getattr(kind, "_model_mapping", None)
    if mapping is None:
        return kind
    if type(config) not in mapping:
        raise SettingsError(f"{kind.__name__} has no model for a {type(config).__name__}; give a model of its task")
    found = mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _weight_map(index: Path) -> dict[str, str]:
    """Return the shard of each key."""
    try:
        found = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, dict) or not found or not all(isinstance(shard, str) for shard in found.values()):
        raise SettingsError(
            f"{index}: no 'weight_map' from keys to shards; copy or fetch the whole model directory again"
        )
    return found


def _slices(found: list[Path], stack: ExitStack) -> dict[str, Any]:
    """Return a lazy reader of each key's tensor."""
    state: dict[str, Any] = {}
    for file in found:
        opened = stack.enter_context(_opened(file))
        state |= {key: opened.get_slice(key) for key in list(opened.keys())}
    return state


def _opened(file: Path) -> Any:
    """Read rather than mapped: memory is freed after each cast, and a file overwritten later changes no model."""
    try:
        return safe_open(file, framework="pt", backend="pread")
    except Exception as error:  # safetensors raises kinds of its own and OSError
        raise weights.unreadable(file, error) from None
