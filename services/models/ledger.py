"""Which modules a scorer came to hold while it was built, those that it shares with others included. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

_open: ContextVar[list[Any] | None] = ContextVar("ledger", default=None)


@contextmanager
def noting() -> Iterator[list[Any]]:
    """The modules noted inside, each once, complete at the end; they are noted outside as well."""
    mine: list[Any] = []
    token = _open.set(mine)
    try:
        yield mine
    finally:
        _open.reset(token)
        note(*mine)


def note(*modules: Any) -> None:
    """Enter torch modules into the ledger that is open, if one is."""
    mine = _open.get()
    if mine is not None:
        mine.extend(module for module in modules if not any(module is known for known in mine))


@dataclass(frozen=True, slots=True)
class Held:
    """What modules hold: bytes of parameters, and the device and dtype of most of them (None where there are none)."""

    parameter_bytes: int
    device: str | None
    dtype: str | None

    @classmethod
    def by(cls, modules: Sequence[Any]) -> Held:
        parameters = {id(p): p for module in modules for p in module.parameters()}.values()
        devices: Counter[str] = Counter()
        dtypes: Counter[str] = Counter()
        for parameter in parameters:
            size = parameter.numel() * parameter.element_size()
            devices[str(parameter.device)] += size
            dtypes[str(parameter.dtype).removeprefix("torch.")] += size
        return cls(devices.total(), _most(devices), _most(dtypes))


def _most(bytes_of: Counter[str]) -> str | None:
    return bytes_of.most_common(1)[0][0] if bytes_of else None
