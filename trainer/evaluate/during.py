"""The held-out evaluations of a run: before training, every `every` steps, and after it; and when they end it early."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from trainer.algorithms.early_stop import EarlyStop
from trainer.clock import Clock
from trainer.distributed import ONE_RANK, Ranks
from trainer.evaluate.compare import Evaluation, hacking, summary
from trainer.evaluate.heldout import (
    AFTER,
    BEFORE,
    DURING,
    conditions,
    evaluate,
    evaluations,
    from_document,
    held_out,
    load_evaluation,
    save_evaluation,
    step_of,
    to_document,
)
from trainer.images import write_whole
from trainer.policy.base import Policy
from trainer.rewards.base import RewardBackend
from trainer.settings import TrainerSettings
from trainer.state import TrainState


class HeldOut:
    """The evaluations of one run, in RUN/evaluation. Those of earlier processes count if their conditions are equal.

    `log` receives a warning when the trained reward rises while the others fall. Every rank calls every method and gets
    the same result; rank 0 alone reads and writes the files with the rows. Every method that draws raises
    RewardServiceUnavailable and InvalidRequest, on every other rank OtherRankFailed. Raises SettingsError for broken
    files.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        service: RewardBackend,
        log: Callable[[str], None],
        ranks: Ranks = ONE_RANK,
    ) -> None:
        self._settings, self._service, self._log, self._ranks = settings, service, log, ranks
        self._checked = False  # whether evaluations of later steps have been looked for
        with ranks.together():
            self._conditions, self._tasks = conditions(settings), held_out(settings)
            found = self._load() if ranks.is_first else {}
        shared = ranks.gather_all([(step, to_document(one)) for step, one in found.items()])[0]
        self._found = {step: from_document(one) for step, one in shared}

    def before(self, policy: Policy) -> None:
        """Evaluate the policy that training starts from, unless that has been done."""
        if 0 not in self._found:
            self._found[0] = self._make(policy, BEFORE)

    def ends_run(self, state: TrainState, clock: Clock) -> bool:
        """Evaluate the policy if that is due, by its averaged weights if there are any; return whether the run ends."""
        step = state.step
        if not self._checked:
            self._remove_later(step)
            self._checked = True
        if self.is_due(step) and step not in self._found:
            with clock("evaluate"), state.averaged():
                self._found[step] = self._make(state.policy, DURING.format(step))
            warning = hacking(self._found[0], self._found[step]) if 0 in self._found else None
            if warning is not None:
                self._log(f"step {step}: {warning}")
        return self.is_over(step)

    def means(self, step: int) -> dict[str, Any] | None:
        """Return the means of the evaluation after `step` steps; None if none was made then.

        reward     of the trained reward; a mean is None where every score is missing
        untrained  of the weighted sum of the scorers that are not trained on, and `scores` of each of them
        """
        found = self._found.get(step)
        if found is None:
            return None
        means = {name: summary(row.heldout.get(name) for row in found.rows).mean for name in self._scorers}
        return {"reward": _mean(found, "reward"), "untrained": _mean(found, "heldout_reward"), "scores": means}

    def after(self, policy: Policy, step: int) -> None:
        """Evaluate the trained policy; an evaluation of this step is taken over."""
        after, during = (self._settings.run_dir / name for name in (AFTER, DURING.format(step)))
        if not self._ranks.any(self._ranks.is_first and step in self._found and during.exists()):
            self._make(policy, AFTER)
            return
        with self._ranks.together():
            if self._ranks.is_first:
                shutil.copytree(during.with_suffix(""), after.with_suffix(""), dirs_exist_ok=True)
                write_whole(after, during.read_bytes())

    def is_due(self, step: int) -> bool:
        """Return whether the policy is evaluated after this many steps."""
        every = self._settings.evaluate.every
        return bool(every and step) and step % every == 0

    def is_over(self, step: int) -> bool:
        """Return whether the watched reward has not risen in the last `patience` evaluations up to this step."""
        patience = self._settings.evaluate.patience
        if patience is None:
            return False
        watched, stop = "heldout_reward" if self._scorers else "reward", EarlyStop()
        for done in sorted(done for done in self._found if done <= step):
            stop = stop.update(_mean(self._found[done], watched))
        return stop.is_due(patience)

    @property
    def _scorers(self) -> list[str]:
        return sorted(self._settings.evaluate.scorers)

    def _load(self) -> dict[int, Evaluation]:
        """Return the evaluations in the run's directory under the present conditions, by step."""
        found = {step_of(path): load_evaluation(path) for path in evaluations(self._settings.run_dir)}
        return {step: one for step, one in found.items() if step is not None and self._is_current(one)}

    def _remove_later(self, step: int) -> None:
        """Remove evaluations of later steps: those are trained again, perhaps with other settings."""
        self._found = {made: one for made, one in self._found.items() if made <= step}
        with self._ranks.together():
            for path in evaluations(self._settings.run_dir) if self._ranks.is_first else ():
                made = step_of(path)
                if made is None or made > step:
                    path.unlink()
                    shutil.rmtree(path.with_suffix(""), ignore_errors=True)

    def _is_current(self, found: Evaluation) -> bool:
        return found.conditions == self._conditions and len(found.rows) == self._settings.evaluate.prompts

    def _make(self, policy: Policy, name: str) -> Evaluation:
        path = self._settings.run_dir / name
        what = f"held-out {path.stem}"
        found = evaluate(policy, self._service, self._tasks, self._settings, what, self._ranks)
        save_evaluation(path, found, self._ranks)
        return found


def _mean(evaluation: Evaluation, name: str) -> float | None:
    return summary(getattr(row, name) for row in evaluation.rows).mean
