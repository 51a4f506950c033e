"""The clock of a training step, with a simulated GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from trainer.clock import Clock


class Gpu:
    """The second of two GPUs, which alone has memory of this process: queued work takes its time when waited for."""

    def __init__(self) -> None:
        self.now, self.queued = 0.0, 0.0
        self.waits: list[int] = []

    def synchronize(self, device: int) -> None:
        self.waits.append(device)
        self.now, self.queued = self.now + self.queued, 0.0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    found = Gpu()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: (0, 512)[device])
    monkeypatch.setattr(torch.cuda, "synchronize", found.synchronize)
    monkeypatch.setattr("trainer.clock.time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


def test_a_phase_has_the_seconds_of_its_own_kernels(gpu: Gpu) -> None:
    clock = Clock()
    with clock("preview"):
        gpu.queued += 5.0
    with clock("decode"):
        gpu.queued += 2.0
    gpu.queued += 3.0  # outside every phase
    with clock("update"):
        pass
    assert clock.lap() == {"preview": 5.0, "decode": 2.0, "update": 0.0, "total": 10.0}
    assert gpu.waits == [1] * 6, "at the start and the end of each, on the GPU with memory of this process"


def test_an_inner_phase_leaves_queued_kernels_outside(gpu: Gpu) -> None:
    clock = Clock()
    with clock("evaluate"):
        gpu.queued += 4.0
        with clock("decode"):
            gpu.queued += 1.0
    assert clock.lap() == {"decode": 1.0, "evaluate": 4.0, "total": 5.0}


def test_an_error_ends_a_phase_without_a_wait(gpu: Gpu) -> None:
    with pytest.raises(ValueError, match="of the block"), Clock()("update"):
        raise ValueError("of the block")
    assert gpu.waits == [1]


def test_without_cuda_nothing_is_waited_for(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    clock = Clock()
    with clock("preview"):
        gpu.now += 1.0
    assert clock.lap() == {"preview": 1.0, "total": 1.0}
    assert gpu.waits == []
