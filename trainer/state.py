"""All that changes while a run trains, and what of it a checkpoint keeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from trainer.grpo.advantage import Slope
from trainer.grpo.threshold import ThresholdController, ThresholdState
from trainer.policy.base import Policy
from trainer.rollout import Previews


@dataclass
class TrainState:
    """`step` is the number of steps done. What is drawn at a step follows from (seed, step): no generator is kept."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    step: int = 0
    thresholds: dict[str, ThresholdState] = field(default_factory=dict)
    slope: Slope = field(default_factory=Slope)

    def to_save(self) -> dict[str, Any]:
        thresholds = {key: asdict(tracker) for key, tracker in self.thresholds.items()}
        model, optimizer = self.policy.module.state_dict(), self.optimizer.state_dict()
        return {"policy": model, "optimizer": optimizer, "thresholds": thresholds, "slope": asdict(self.slope)}

    def restore(self, step: int, saved: dict[str, Any]) -> None:
        self.policy.module.load_state_dict(saved["policy"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.thresholds = {key: ThresholdState(**tracker) for key, tracker in saved["thresholds"].items()}
        self.step, self.slope = step, Slope(**saved["slope"])


def update_threshold(controller: ThresholdController, tracker: ThresholdState, found: Previews) -> ThresholdState:
    """The task's tracker after its screen, from every surrogate score that was measured."""
    scores = [score for score in found.scores if score is not None]
    return controller.update(
        tracker, scores, found.screened.drawn, min(found.screened.passed, len(scores)), found.capped
    )
