"""What changes while a run trains, and how a checkpoint stores it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

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
            "policy": dict(self._trained()),
            "optimizer": self.optimizer.state_dict(),
            "thresholds": {key: asdict(threshold) for key, threshold in self.thresholds.items()},
            "slope": asdict(self.reward_slope),
        }

    def restore(self, step: int, saved: dict[str, Any]) -> None:
        """Restore the state after `step` steps from the tree that `to_save` returned."""
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(saved["policy"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.thresholds = {key: ThresholdState(**fields) for key, fields in saved["thresholds"].items()}
        self.step, self.reward_slope = step, Slope(**saved["slope"])

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what training changes, by name; frozen weights are read from the model directory again."""
        return ((name, p) for name, p in self.policy.module.named_parameters() if p.requires_grad)


def update_thresholds(
    controller: ThresholdController, states: Mapping[str, ThresholdState], previews: Sequence[Previews]
) -> dict[str, ThresholdState]:
    """Return the next thresholds by `Task.key`, from every surrogate score that was measured."""
    updated = dict(states)
    for drawn in previews:
        scores = [score for score in drawn.scores if score is not None]
        screened, before = drawn.screened, updated.get(drawn.task.key, controller.initial_state())
        passed = min(screened.passed, len(scores))
        updated[drawn.task.key] = controller.update(before, scores, screened.drawn, passed, drawn.capped)
    return updated
