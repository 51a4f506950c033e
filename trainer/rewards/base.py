"""The interface of what scores images."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from synod.contracts import ScoreItem
from trainer.types import Reward, RewardSpec


class RewardBackend(Protocol):
    """The reward service as rollouts use it."""

    def submit_previews(self, items: Sequence[ScoreItem]) -> Future[list[Reward]]:
        """Request the surrogate scores of previews, in order."""
        ...

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        """Request the rewards of finished images, in order."""
        ...
