"""Keep memory that a batch frees for the next batch.

By default glibc returns large blocks to the system, and every batch maps and faults them in again: up to 40 % of FER's
time (docs/log.md). Replicas and the trainer see the same shapes in each batch, so they keep the blocks.
"""

from __future__ import annotations

import ctypes
from typing import Final

# <malloc.h>: from one heap, which is not trimmed below 1 GiB free, and never by mmap.
_ONE_ARENA: Final = (-8, 1)
_TRIM_ABOVE: Final = (-1, 2**30)
_NO_MMAP: Final = (-4, 0)


def keep_freed_memory() -> bool:
    """Make this process keep up to 1 GiB that it frees; call it before threads and models allocate.

    Returns False if the C library is not glibc, and then changes nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*option) for option in (_ONE_ARENA, _TRIM_ABOVE, _NO_MMAP))
