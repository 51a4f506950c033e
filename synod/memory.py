"""Keep the memory that a batch frees for the next batch.

By default glibc returns large blocks to the system, and each batch maps them and faults them in again: up to 40 % of
FER's time (docs/log.md). Batches of replicas and the trainer have similar shapes, so these keep the blocks.
"""

from __future__ import annotations

import ctypes
from typing import Final

# Options of mallopt (<malloc.h>) and their values.
_ONE_ARENA: Final = (-8, 1)
_TRIM_ABOVE: Final = (-1, 2**30)  # return memory to the system only above 1 GiB of free memory
_NO_MMAP: Final = (-4, 0)


def keep_freed_memory() -> bool:
    """Make this process keep up to 1 GiB of freed memory. Call it before threads and models allocate.

    Return False, and change nothing, if the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*option) for option in (_ONE_ARENA, _TRIM_ABOVE, _NO_MMAP))
