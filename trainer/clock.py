"""Seconds spent in each phase of a training step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Measures phases: `with clock("preview"): ...` adds to that phase, without the time of phases inside it.

    A phase begins and ends when the GPUs have finished what is queued, so it has the time of its own kernels only.
    """

    def __init__(self) -> None:
        self._began, self._seconds = time.perf_counter(), dict[str, float]()
        self._inside = 0.0  # the seconds of phases that have ended inside the present one

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        _wait_for_kernels()
        began, outside, self._inside = time.perf_counter(), self._inside, 0.0
        try:
            yield
            _wait_for_kernels()  # not after an error, which a failed kernel's own error would replace
        finally:
            spent = time.perf_counter() - began
            self._seconds[phase] = self._seconds.get(phase, 0.0) + spent - self._inside
            self._inside = outside + spent

    def lap(self) -> dict[str, float]:
        """Return the seconds of every phase since the last lap, with their `total`, and reset them.

        `total` includes time outside every phase.
        """
        now = time.perf_counter()
        seconds = {**self._seconds, "total": now - self._began}
        self._began, self._seconds = now, {}
        return seconds


def _wait_for_kernels() -> None:
    """Wait until every GPU that this process has memory on has finished what is queued; without CUDA do nothing.

    GPUs without memory of this process belong to other ranks; waiting for one would take memory there.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    for device in range(torch.cuda.device_count()):
        if torch.cuda.memory_reserved(device):
            torch.cuda.synchronize(device)
