"""The C library's memory where models run: what one batch frees, the next one uses again.

By default glibc hands large blocks back to the system and maps them anew, page fault by page fault, in every batch, up
to 40 % of FER's time (docs/log.md). Replicas and the trainer meet the same shapes again and again, so they keep them.
"""

from __future__ import annotations

import ctypes
from typing import Final

# <malloc.h>: from one heap, which is not trimmed below 1 GiB free, and never by mmap.
_ONE_ARENA: Final = (-8, 1)
_TRIM_ABOVE: Final = (-1, 2**30)
_NO_MMAP: Final = (-4, 0)


def keep_freed_memory() -> bool:
    """Have this process keep up to 1 GiB that it freed, best before threads and models allocate.

    False where the C library is not glibc: then nothing changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*option) for option in (_ONE_ARENA, _TRIM_ABOVE, _NO_MMAP))
