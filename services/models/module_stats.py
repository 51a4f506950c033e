"""Record the torch modules that a scorer holds after it was built, shared ones included. Loads no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

_recorded: ContextVar[list[Any] | None] = ContextVar("recorded_modules", default=None)


@contextmanager
def record_modules() -> Iterator[list[Any]]:
    """Collect the modules recorded within, each once. An enclosing `record_modules` gets them too."""
    modules: list[Any] = []
    token = _recorded.set(modules)
    try:
        yield modules
    finally:
        _recorded.reset(token)
        record(*modules)


def record(*modules: Any) -> None:
    """Add torch modules to the enclosing `record_modules`, if there is one."""
    recorded = _recorded.get()
    if recorded is not None:
        recorded.extend(module for module in modules if not any(module is known for known in recorded))


@dataclass(frozen=True, slots=True)
class ParameterStats:
    """Bytes of all parameters, and the device and dtype of most of those bytes (None without parameters)."""

    parameter_bytes: int
    device: str | None
    dtype: str | None

    @classmethod
    def of(cls, modules: Sequence[Any]) -> ParameterStats:
        """Count each parameter once, also where modules share it."""
        parameters = {id(p): p for module in modules for p in module.parameters()}.values()
        devices: Counter[str] = Counter()
        dtypes: Counter[str] = Counter()
        for parameter in parameters:
            size = parameter.numel() * parameter.element_size()
            devices[str(parameter.device)] += size
            dtypes[str(parameter.dtype).removeprefix("torch.")] += size
        return cls(devices.total(), _most_common(devices), _most_common(dtypes))


def _most_common(bytes_of: Counter[str]) -> str | None:
    return bytes_of.most_common(1)[0][0] if bytes_of else None
