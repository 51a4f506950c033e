"""Ranks with different devices."""

from __future__ import annotations

import pytest

from synod.errors import SettingsError
from trainer.devices import check_devices, device_name, layout

H200, H100 = "NVIDIA H200, 140 GiB", "NVIDIA H100, 80 GiB"


@pytest.mark.parametrize("names", [["cpu"], ["cpu", "cpu"], [H200] * 8])
def test_equal_devices_need_no_word(names: list[str]) -> None:
    assert check_devices(names) is None


def test_different_gpus_are_named_with_their_ranks() -> None:
    warning = check_devices([H200, H100, H200])
    assert warning is not None
    assert f"({H200}: ranks 0, 2; {H100}: rank 1)" in warning


@pytest.mark.parametrize("names", [["cpu", H200], [H200, H100, "cpu"]])
def test_ranks_without_a_gpu_among_others_are_refused(names: list[str]) -> None:
    with pytest.raises(SettingsError, match=rf"cpu: rank {names.index('cpu')}.*CUDA_VISIBLE_DEVICES"):
        check_devices(names)


def test_hosts_are_named_with_their_ranks() -> None:
    places = [("gpu07", H200)] * 8 + [("gpu08", H200), ("gpu08", H100)]
    assert layout(places) == f"0-7 gpu07 ({H200}), 8 gpu08 ({H200}), 9 gpu08 ({H100})"


def test_this_machine_has_a_device() -> None:
    assert device_name()
