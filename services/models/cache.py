"""One module per (family, content, device, dtype) and process: two scorers that name the same model share its weights.

The key is the content's digest, so that a path and a copy of it, or a hub id and its snapshot, are the same model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from services.models.module_stats import record, record_modules
from services.settings_types import DType, ServingSettings
from synod import hub

T = TypeVar("T")

_loaded: dict[tuple[str, str, Device], tuple[object, list[Any]]] = {}
_lock = threading.RLock()  # re-entrant: a face finder loads its detector while it is being loaded


@dataclass(frozen=True, slots=True)
class Device:
    """Where and how a model runs. `dtype` is of weights and activations; what leaves a model is float32 anyway."""

    name: str
    dtype: DType = "float32"
    compile: bool = False

    @classmethod
    def of(cls, serving: ServingSettings) -> Device:
        """Return the device of a scorer's settings."""
        return cls(pick_device(serving.device), serving.dtype, serving.compile)


def pick_device(name: str | None) -> str:
    """Return the settings' device; None takes 'cuda' where there is one, else 'cpu'."""
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def shared(family: str, source: str, device: Device | str, load: Callable[[Path], T]) -> T:
    """Call `load(local path)` once per process for a family, the content of `source` and a device."""
    key = (family, hub.digest(source), as_device(device))
    with _lock:
        if key not in _loaded:
            with record_modules() as modules:
                loaded = load(hub.resolve(source))
            _loaded[key] = loaded, modules
        model, modules = _loaded[key]
        record(*modules)
        return cast(T, model)


def frozen(module: Any, device: Device | str, *run: str) -> Any:
    """Return the module on its device and in its dtype, in eval mode, without gradients.

    `run` names the submodules that callers run, where they do not call the module itself: those are what is compiled.
    The frequencies of rotary embeddings stay float32: rounded to bfloat16, position 1000 is off by about a radian.
    Sizes are dynamic, so a module has one graph for a batch of one and one for any other, whatever sizes come.
    """
    device = as_device(device)
    angles = {name: buffer for name, buffer in module.named_buffers() if name.endswith("inv_freq")}
    module.to(device.name, getattr(torch, device.dtype)).eval().requires_grad_(False)
    for name, buffer in angles.items():
        where, _, leaf = name.rpartition(".")
        module.get_submodule(where).register_buffer(leaf, buffer.to(device.name), persistent=False)
    if device.compile:
        for part in [module.get_submodule(name) for name in run] or [module]:
            part.compile(dynamic=True)
    record(module)
    return module


def like(module: Any, batch: torch.Tensor) -> torch.Tensor:
    """Return the batch on the module's device and in its dtype."""
    return batch.to(next(module.parameters()))


def as_device(device: Device | str) -> Device:
    """Return the device; a name alone is that device in float32."""
    return Device(device) if isinstance(device, str) else device
