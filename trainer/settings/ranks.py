"""The table `[trainer.ranks]`."""

from __future__ import annotations

from pydantic import Field

from trainer.settings.fields import Node


class RankSettings(Node):
    """The processes that train together. `workers` 0: this one, or those that torchrun starts.

    Otherwise Ray Train starts `workers` processes with `gpus` GPUs each, and starts them again from the newest
    checkpoint after a failure, at most `max_failures` times. One copy of the policy is split over `shard` of the
    processes (FSDP2), which must divide their number; 1: each has the whole policy.
    """

    workers: int = Field(0, ge=0)
    gpus: int = Field(1, ge=0)
    shard: int = Field(1, ge=1)
    max_failures: int = Field(3, ge=0)
