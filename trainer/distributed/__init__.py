"""A run on several devices; the only package that imports torch.distributed."""

from trainer.distributed.ranks import ONE_RANK, PATIENCE, Ranks, device, joined
from trainer.distributed.sharding import WHOLE, Sharding, local, part, shard, whole

__all__ = ["ONE_RANK", "PATIENCE", "WHOLE", "Ranks", "Sharding", "device", "joined", "local", "part", "shard", "whole"]
