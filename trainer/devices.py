"""What each rank computes on, and whether that fits together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from synod.errors import SettingsError
from trainer.distributed import device


def device_name() -> str:
    """Return this rank's device: "cpu", or the GPU's name and memory."""
    own = device()
    if own.type == "cpu":
        return "cpu"
    found = torch.cuda.get_device_properties(own)
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB"


def check_devices(names: Sequence[str]) -> str | None:
    """Return a warning if ranks have different GPUs, by `device_name` of each. Raises SettingsError for CPU and GPU."""
    if len(set(names)) == 1:
        return None
    listed = "; ".join(f"{name}: {_ranks_of(names, name)}" for name in dict.fromkeys(names))
    if "cpu" in names:
        raise SettingsError(
            f"some ranks have a GPU and some have none ({listed}); start them where each has one, or all without "
            "(CUDA_VISIBLE_DEVICES='')"
        )
    return f"the ranks have different GPUs ({listed}): each step takes as long as on the slowest"


def layout(places: Sequence[tuple[str, str]]) -> str:
    """Return the ranks of each host and device, such as "0-7 gpu07 (NVIDIA H200, 140 GiB), 8-15 gpu08 (..)".

    `places` has host and `device_name` of each rank.
    """
    spans = [(list(found), place) for place, found in groupby(range(len(places)), lambda rank: tuple(places[rank]))]
    return ", ".join(
        f"{ranks[0]}{f'-{ranks[-1]}' * (len(ranks) > 1)} {host} ({device})" for ranks, (host, device) in spans
    )


def _ranks_of(names: Sequence[str], name: str) -> str:
    places = [str(rank) for rank, other in enumerate(names) if other == name]
    return f"rank{'s' * (len(places) > 1)} {', '.join(places)}"
