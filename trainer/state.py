"""What changes while a run trains, and how a checkpoint stores it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer import checkpoint
from trainer.agreement import SAMPLE, check_settings, check_weights
from trainer.algorithms.advantage import Slope
from trainer.algorithms.audit import Audit
from trainer.algorithms.auto import AutoScreen
from trainer.algorithms.costs import Costs
from trainer.algorithms.threshold import ThresholdController, ThresholdState
from trainer.checkpoint import CheckpointMismatch, fingerprint
from trainer.credit import SlopeKey, update_reward_slopes
from trainer.distributed import ONE_RANK, WHOLE, Ranks, Sharding, part, shard, whole
from trainer.ema import Ema
from trainer.evaluate.draw import digest_of
from trainer.groups import Previews, ScoredGroup
from trainer.optim import make_optimizer
from trainer.policy.base import Policy
from trainer.screen_audit import audit_record, doubts, restored, restored_costs, update_audits, update_costs
from trainer.screen_auto import auto_record, first_screen, moves, restored_screen, update_screens
from trainer.screen_plan import ScreenPlan, auto_plan, fixed_plan
from trainer.settings import TrainerSettings
from trainer.types import Pathway, Task


@dataclass
class TrainState:
    """The state after `step` steps; random numbers follow from (seed, step), so no generator is stored.

    trained        what training changes, by name; frozen weights are read from the model directory again
    base           a digest of all weights at the start of the run, those of the image tokenizer included
    settings       the fingerprint of the settings and data, as they were when this process began
    sharding       how the policy is split over ranks
    ema            the average of the trained weights; None: not kept
    thresholds     the threshold controller's state for each `Task.key`
    reward_slopes  the running regression slopes of reward on surrogate score, for the population baseline, by
                   modality, pathway and step
    audits         sums over the groups of a run whose screen is audited, by pathway
    screens        the screen of each pathway, if `screen.select` is "auto"
    costs          what drawing and training cost, if one of these is measured
    """

    policy: Policy
    optimizer: torch.optim.Optimizer
    controller: ThresholdController
    trained: dict[str, nn.Parameter]
    base: str
    settings: Mapping[str, Any]
    sharding: Sharding = WHOLE
    ema: Ema | None = None
    step: int = 0
    thresholds: dict[str, ThresholdState] = field(default_factory=dict)
    reward_slopes: dict[SlopeKey, Slope] = field(default_factory=dict)
    audits: dict[Pathway, Audit] = field(default_factory=dict)
    screens: dict[Pathway, AutoScreen] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)

    @classmethod
    def new(
        cls, policy: Policy, controller: ThresholdController, settings: TrainerSettings, ranks: Ranks = ONE_RANK
    ) -> TrainState:
        """Return the state before the first step; splits the policy over the ranks if the settings say so."""
        decay, base, sharding = settings.optimizer.ema, digest_of(policy, SAMPLE), WHOLE
        if settings.ranks.shard > 1 and ranks.world > 1:  # a dry run has one rank
            check_weights(policy, ranks)  # later a rank has parts of them alone
            sharding = shard(policy.units(), ranks, settings.ranks.shard)
        optimizer = make_optimizer(policy, settings)
        ema = Ema(policy.module, decay) if decay else None
        trained = {name: p for name, p in policy.module.named_parameters() if p.requires_grad}
        sharding.refresh()
        return cls(policy, optimizer, controller, trained, base, fingerprint(settings), sharding, ema)

    def key(self, settings: TrainerSettings) -> tuple[int, int]:
        """Return the first numbers of every seed of the present step."""
        return settings.seed, self.step

    def threshold(self, task: Task) -> float | None:
        """Return the threshold that the task's previews are screened by; None keeps all."""
        return self.thresholds.get(task.key, self.controller.initial_state()).threshold

    def plan(self, task: Task, settings: TrainerSettings, key: Sequence[int]) -> ScreenPlan:
        """Return how the rollouts of a task are drawn and chosen; `key` has the first numbers of their seeds."""
        if settings.screen.select == "auto":
            return auto_plan(task, settings, self.screens.get(task.pathway) or first_screen(task.pathway), key)
        return fixed_plan(task, settings, self.threshold(task))

    def advance(self, groups: Sequence[ScoredGroup]) -> None:
        """Finish a step whose update was made: its groups move the slopes, and each of their thresholds once."""
        self.reward_slopes = update_reward_slopes(self.reward_slopes, groups)
        by_key: dict[str, list[Previews]] = {}
        for group in groups:
            by_key.setdefault(group.previews.task.key, []).append(group.previews)
        for key, previews in by_key.items():
            self._update_threshold(key, previews)
        if self.ema is not None:
            self.ema.update(self.step)
        self.step += 1

    def audit(
        self,
        groups: Sequence[ScoredGroup],
        replaced: int,
        settings: TrainerSettings,
        seconds: Sequence[Mapping[str, float]],
        log: Callable[[str], None],
    ) -> dict[str, Any]:
        """Add a step's groups, the `replaced` ones first, and every rank's seconds to the audit; return its figures.

        Screens of "auto" move, and a surrogate may turn out bad; both are said to `log`.
        """
        if settings.screen.audit:
            self.costs = update_costs(self.costs, groups, replaced, seconds, settings)
        if settings.screen.select == "auto":
            before = self.screens
            self.screens, gains = update_screens(before, groups, self.costs, settings)
            for line in moves(before, self.screens, gains, settings):
                log(line)
            return auto_record(self.screens, gains)
        if settings.screen.audit:
            audits, self.audits = self.audits, update_audits(self.audits, groups, settings)
            for line in doubts(audits, self.audits, self.costs):
                log(line)
        return audit_record(self.audits, self.costs)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside this context the policy has the averaged weights, if an average is kept. All ranks enter it."""
        if self.ema is None:
            yield
            return
        with self.ema.applied():
            self.sharding.refresh()
            yield
        self.sharding.refresh()

    def to_save(self, ranks: Ranks = ONE_RANK) -> dict[str, Any]:
        """Return the state as a tree that `checkpoint.save` accepts, the same at any number of ranks.

        All ranks call it; tensors of a split policy are gathered by the first alone, into the memory of its host.
        """
        saved = {
            "policy": dict(self.trained),
            "base": self.base,
            "optimizer": self.optimizer.state_dict(),
            "thresholds": {key: asdict(threshold) for key, threshold in self.thresholds.items()},
            "slopes": [[*key, asdict(slope)] for key, slope in self.reward_slopes.items()],
            **({} if self.ema is None else {"ema": self.ema.to_save()}),
            **self._saved_audit(),
        }
        found: dict[str, Any] = whole(saved, keep=ranks.is_first)
        return found

    def _saved_audit(self) -> dict[str, Any]:
        if self.costs == Costs():
            return {}
        audits = {pathway: asdict(audit) for pathway, audit in self.audits.items()}
        screens = {pathway: asdict(screen) for pathway, screen in self.screens.items()}
        return {"audits": audits, "screens": screens, "costs": asdict(self.costs)}

    def save(self, directory: Path, ranks: Ranks) -> None:
        """Write a checkpoint, by rank 0 while the others wait; none before the first step. All ranks call it."""
        if not self.step:
            return
        saved = self.to_save(ranks)
        with ranks.together("checkpoint"):
            if ranks.is_first:
                checkpoint.save(directory, self.step, saved, self.settings, ranks.world)

    def resume(self, directory: Path, settings: TrainerSettings, ranks: Ranks = ONE_RANK) -> Path | None:
        """Restore the newest checkpoint, if there is one, and return it. All ranks call it.

        Raises CheckpointMismatch, and SettingsError if the ranks differ in settings, checkpoints or weights.
        """
        check_settings(settings, ranks)
        with ranks.together():
            last = checkpoint.latest(directory)
            found = None if last is None else checkpoint.load(last, settings)
        step = 0 if found is None else found[0]
        ranks.check_equal(step, "step of the newest checkpoint; run_dir must be the same directory on every machine")
        if found is not None:
            self.restore(*found, ranks)
        if not self.sharding.is_on:
            check_weights(self.policy, ranks)
        return last

    def restore(self, step: int, saved: dict[str, Any], ranks: Ranks = ONE_RANK) -> None:
        """Restore the state after `step` steps from the tree that `to_save` returned. All ranks call it.

        Of a split policy each rank takes its parts. Raises CheckpointMismatch if the run started from other weights.
        """
        with ranks.together():
            self._restore(step, saved)
        self.sharding.refresh()

    def _restore(self, step: int, saved: dict[str, Any]) -> None:
        if saved["base"] != self.base:
            raise CheckpointMismatch(
                f"the run of the checkpoint of step {step} started from other weights than [trainer.policy] names "
                "now; give the model and the tokenizer that it started from (of a hub id one revision: "
                "'org/name@REVISION'), or a new run_dir"
            )
        with torch.no_grad():
            for name, parameter in self.trained.items():
                if saved["policy"][name].shape != parameter.shape:
                    raise CheckpointMismatch(
                        f"the checkpoint has {name} as {list(saved['policy'][name].shape)}, the policy as "
                        f"{list(parameter.shape)}; give the model that the run started from, or a new `run_dir`"
                    )
                parameter.copy_(part(saved["policy"][name], parameter))
        self.optimizer.load_state_dict(self._own_parts(saved["optimizer"]))
        self.thresholds = {key: ThresholdState(**fields) for key, fields in saved["thresholds"].items()}
        self.step = step
        self.reward_slopes = {
            (modality, pathway, step): Slope(**slope) for modality, pathway, step, slope in saved["slopes"]
        }
        if "audits" in saved:
            self.audits = {pathway: restored(audit) for pathway, audit in saved["audits"].items()}
            self.screens = {pathway: restored_screen(screen) for pathway, screen in saved["screens"].items()}
            self.costs = restored_costs(saved["costs"])
        if self.ema is not None:
            self.ema.restore(saved["ema"])

    def _own_parts(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Return the optimizer's saved state with this rank's parts of what has the shape of a parameter."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = {
            number: {
                key: part(value, parameters[number]) if key != "step" and isinstance(value, torch.Tensor) else value
                for key, value in found.items()
            }
            for number, found in saved["state"].items()
        }
        return {**saved, "state": state}

    def _update_threshold(self, key: str, previews: Sequence[Previews]) -> None:
        """Move a threshold once, by every surrogate score that the groups of a step with this key measured.

        They were screened by one threshold, so they are one sample.
        """
        scores, drawn, passed = list[float](), 0, 0
        for one in previews:
            measured = [score for score in one.scores if score is not None]
            scores += measured
            drawn += one.screened.drawn
            passed += min(one.screened.passed, len(measured))
        before = self.thresholds.get(key, self.controller.initial_state())
        capped = any(one.capped for one in previews)
        self.thresholds[key] = self.controller.update(before, scores, drawn, passed, capped)
