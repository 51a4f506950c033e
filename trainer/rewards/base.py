"""The interface of what scores images."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from synod.contracts import ScoreItem
from trainer.types import Reward, RewardSpec


class RewardBackend(Protocol):
    """The reward service as rollouts use it."""

    def submit_previews(self, items: Sequence[ScoreItem], reward: RewardSpec | None = None) -> Future[list[Reward]]:
        """Request the surrogate scores of previews, in order; all items have an image, or none has.

        They are those of the surrogate scorer, or of `reward`. Items without an image are scored by the terms of
        `reward` that read only text. A score with a missing term, or without any, is missing.
        """
        ...

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        """Request the rewards of finished images, in order."""
        ...
