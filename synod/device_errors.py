"""Recognise the errors of a device by class name and message, because torch may not be installed or imported."""

from __future__ import annotations

import re
from typing import Final

_DEVICE_ERROR: Final = re.compile(r"(CUDA|HIP) (driver )?error|Triton Error \[CUDA\]")  # at the start of a message
# Errors after which the process can still use the device: no memory, or a kernel that was not launched.
_RECOVERABLE: Final = re.compile(r"out of memory|ALLOC_FAILED|invalid argument|invalid configuration|no kernel image")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` reports exhausted memory: MemoryError, or a class named OutOfMemoryError like torch's."""
    return isinstance(error, MemoryError) or _is_named(error, "OutOfMemoryError")


def is_device_lost(error: BaseException) -> bool:
    """Return whether the process cannot use its device again after `error`.

    CUDA repeats such an error (a device-side assert, an illegal memory access) for every later call of the process.
    torch raises it as AcceleratorError, or as RuntimeError before version 2.8.
    """
    if is_out_of_memory(error) or _RECOVERABLE.search(str(error)):
        return False
    return _is_named(error, "AcceleratorError") or (
        isinstance(error, RuntimeError) and _DEVICE_ERROR.match(str(error)) is not None
    )


def _is_named(error: BaseException, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(error).__mro__)
