"""Scorers without models, to measure the serving alone. Replicas import this module by name."""

from __future__ import annotations

import time
from collections.abc import Sequence

from services.scorers import registry
from services.scorers.base import Scorer, ScorerSpec
from services.settings_types import ScorerSettings
from synod.contracts import Outcome, Score, ScoreItem

BATCH_IMAGES = 32  # equal to max_batch_images of the settings
DEVICE_S = 0.025  # for a batch of up to BATCH_IMAGES: 1,280 images/s
SLOW_DEVICE_S = 0.1  # 320 images/s


class Trivial:
    """Returns the first sample of the image. Sleeps `wait_s` per batch, like a slow device that needs no CPU."""

    def __init__(self, name: str, wait_s: float = 0.0) -> None:
        self.spec = ScorerSpec(name, ("image",), 0.0, 1.0, "a benchmark", "the first sample of the image")
        self._wait_s = wait_s

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        for _ in range(0, len(items) if self._wait_s else 0, BATCH_IMAGES):
            time.sleep(self._wait_s)
        return [Score(float(item.pixels()[0, 0, 0]) / 255) for item in items]


def build(name: str, settings: ScorerSettings) -> Scorer:
    """Build `trivial`, `wait...` or `slow...` by name; other names are real scorers."""
    if name == "trivial":
        return Trivial(name)
    if name.startswith(("wait", "slow")):
        return Trivial(name, DEVICE_S if name.startswith("wait") else SLOW_DEVICE_S)
    return registry.build(name, settings)
