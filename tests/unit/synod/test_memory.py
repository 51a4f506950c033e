"""Freed memory is reused: counts page faults in a separate process."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from synod import memory

if sys.argv[1] == "kept":
    assert memory.keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**23)  # 64 MiB, 16,384 pages
before = faults()
for _ in range(8):
    np.ones(2**23)
print(faults() - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
def test_freed_memory_is_not_mapped_again() -> None:
    assert faults("kept") < 100
    assert faults("usual") > 200  # 8 x 16,384; 8 x 32 where the system gives huge pages
