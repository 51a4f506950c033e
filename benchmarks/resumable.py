"""What the benchmarks share that train for long and are continued by the command that started them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from trainer.run_dir import run_lock


def finish(runs: Path, work: Callable[[], bool]) -> int:
    """Do `work` alone in the directory `runs`, and return the exit status: 0 if it returns that all is finished.

    Ctrl-C stops it. Raises what `run_lock` raises if another process works there.
    """
    with run_lock(runs):
        try:
            if work():
                return 0
        except KeyboardInterrupt:
            pass
    tqdm.write("stopped before the end; the same command continues")
    return 1
