"""What changes while a run trains, and how a checkpoint stores it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from trainer.algorithms.advantage import Slope
from trainer.algorithms.threshold import ThresholdController, ThresholdState
from trainer.policy.base import Policy
from trainer.rollout import Previews


@dataclass
class TrainState:
    """The state after `step` steps; random numbers follow from (seed, step), so no generator is stored.

    thresholds    the threshold controller's state for each `Task.key`
    reward_slope  the running regression slope of reward on surrogate score, for the population baseline
    """

    policy: Policy
    optimizer: torch.optim.Optimizer
    step: int = 0
    thresholds: dict[str, ThresholdState] = field(default_factory=dict)
    reward_slope: Slope = field(default_factory=Slope)

    def to_save(self) -> dict[str, Any]:
        """Return the state as a tree that `checkpoint.save` accepts."""
        return {
            "policy": self.policy.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "thresholds": {key: asdict(threshold) for key, threshold in self.thresholds.items()},
            "slope": asdict(self.reward_slope),
        }

    def restore(self, step: int, saved: dict[str, Any]) -> None:
        """Restore the state after `step` steps from the tree that `to_save` returned."""
        self.policy.module.load_state_dict(saved["policy"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.thresholds = {key: ThresholdState(**fields) for key, fields in saved["thresholds"].items()}
        self.step, self.reward_slope = step, Slope(**saved["slope"])


def update_threshold(controller: ThresholdController, state: ThresholdState, previews: Previews) -> ThresholdState:
    """Return the next threshold of a task, from every surrogate score that was measured."""
    scores = [score for score in previews.scores if score is not None]
    screened = previews.screened
    return controller.update(state, scores, screened.drawn, min(screened.passed, len(scores)), previews.capped)
