"""Which exceptions exhaust the memory of a device, and which leave the process without it."""

from __future__ import annotations

import pytest

from synod.device_errors import is_device_lost, is_out_of_memory


class AcceleratorError(RuntimeError):
    """Has the name of torch's exception, by which it is recognised."""


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's exception."""


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (AcceleratorError("CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert'"), True),
        (AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: unspecified launch failure"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True),
        (AcceleratorError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (AcceleratorError("CUDA error: invalid configuration argument"), False),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (MemoryError(), False),
        (RuntimeError("the prompt 'CUDA error: device-side assert triggered' is too long"), False),
        (ValueError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_a_lost_device_is_recognised(error: Exception, lost: bool) -> None:
    assert is_device_lost(error) is lost


def test_torchs_device_error_is_recognised() -> None:
    torch = pytest.importorskip("torch")
    assert is_device_lost(torch.AcceleratorError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(torch.AcceleratorError("CUDA error: device-side assert triggered"))
