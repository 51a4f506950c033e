"""What changes while a run trains, and how a checkpoint stores it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from trainer.algorithms.advantage import Slope
from trainer.algorithms.threshold import ThresholdController, ThresholdState
from trainer.checkpoint import CheckpointMismatch
from trainer.credit import update_reward_slopes
from trainer.ema import Ema
from trainer.optim import make_optimizer
from trainer.policy.base import Policy
from trainer.rollout import Previews, ScoredGroup
from trainer.settings import TrainerSettings
from trainer.types import MODALITIES, Modality, Task

DIGEST_NUMBERS = 64  # of each frozen parameter


def frozen_digest(module: nn.Module) -> str:
    """Return a digest of the parameters that are not trained, by a few numbers of each; "" if all are trained."""
    frozen = [(name, p) for name, p in module.named_parameters() if not p.requires_grad]
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in frozen:
        digest.update(name.encode() + parameter.detach().flatten()[:DIGEST_NUMBERS].float().cpu().numpy().tobytes())
    return digest.hexdigest() if frozen else ""


@dataclass
class TrainState:
    """The state after `step` steps; random numbers follow from (seed, step), so no generator is stored.

    ema            the average of the trained weights; None: not kept
    thresholds     the threshold controller's state for each `Task.key`
    reward_slopes  the running regression slopes of reward on surrogate score, for the population baseline
    """

    policy: Policy
    optimizer: torch.optim.Optimizer
    controller: ThresholdController
    ema: Ema | None = None
    step: int = 0
    thresholds: dict[str, ThresholdState] = field(default_factory=dict)
    reward_slopes: dict[Modality, Slope] = field(default_factory=lambda: dict.fromkeys(MODALITIES, Slope()))

    @classmethod
    def new(cls, policy: Policy, controller: ThresholdController, settings: TrainerSettings) -> TrainState:
        """Return the state before the first step."""
        decay = settings.optimizer.ema
        return cls(policy, make_optimizer(policy, settings), controller, Ema(policy.module, decay) if decay else None)

    def threshold(self, task: Task) -> float | None:
        """Return the threshold that the task's previews are screened by; None keeps all."""
        return self.thresholds.get(task.key, self.controller.initial_state()).threshold

    def advance(self, groups: Sequence[ScoredGroup]) -> None:
        """Finish a step whose update was made: its groups move the thresholds and the slope."""
        self.reward_slopes = update_reward_slopes(self.reward_slopes, groups)
        for group in groups:
            self._update_threshold(group.previews)
        if self.ema is not None:
            self.ema.update(self.step)
        self.step += 1

    def averaged(self) -> AbstractContextManager[None]:
        """Inside this context the policy has the averaged weights, if an average is kept."""
        return nullcontext() if self.ema is None else self.ema.applied()

    def to_save(self) -> dict[str, Any]:
        """Return the state as a tree that `checkpoint.save` accepts."""
        return {
            "policy": dict(self._trained()),
            "frozen": frozen_digest(self.policy.module),
            "optimizer": self.optimizer.state_dict(),
            "thresholds": {key: asdict(threshold) for key, threshold in self.thresholds.items()},
            "slopes": {modality: asdict(slope) for modality, slope in self.reward_slopes.items()},
            **({} if self.ema is None else {"ema": self.ema.to_save()}),
        }

    def restore(self, step: int, saved: dict[str, Any]) -> None:
        """Restore the state after `step` steps from the tree that `to_save` returned.

        Raises CheckpointMismatch if the weights that are not trained are not those of the checkpoint.
        """
        if saved["frozen"] != frozen_digest(self.policy.module):
            raise CheckpointMismatch(
                f"the checkpoint of step {step} was trained on other weights than [trainer.policy] model has now; give "
                "the model that the run started from (of a hub id one revision: 'org/name@REVISION'), or a new run_dir"
            )
        with torch.no_grad():
            for name, parameter in self._trained():
                if saved["policy"][name].shape != parameter.shape:
                    raise CheckpointMismatch(
                        f"the checkpoint has {name} as {list(saved['policy'][name].shape)}, the policy as "
                        f"{list(parameter.shape)}; give the model that the run started from, or a new `run_dir`"
                    )
                parameter.copy_(saved["policy"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.thresholds = {key: ThresholdState(**fields) for key, fields in saved["thresholds"].items()}
        self.step = step
        self.reward_slopes = {modality: Slope(**saved["slopes"][modality]) for modality in MODALITIES}
        if self.ema is not None:
            self.ema.restore(saved["ema"])

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what training changes, by name; frozen weights are read from the model directory again."""
        return ((name, p) for name, p in self.policy.module.named_parameters() if p.requires_grad)

    def _update_threshold(self, previews: Previews) -> None:
        """Move a threshold by every surrogate score that was measured."""
        scores = [score for score in previews.scores if score is not None]
        screened, before = previews.screened, self.thresholds.get(previews.task.key, self.controller.initial_state())
        passed = min(screened.passed, len(scores))
        self.thresholds[previews.task.key] = self.controller.update(
            before, scores, screened.drawn, passed, previews.capped
        )
