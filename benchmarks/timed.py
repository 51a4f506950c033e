"""A training run that ends after a time and is evaluated at marks of that time. It resumes as any run does.

Time is the steps' own, in metrics.jsonl, without evaluations and checkpoints: stopping and resuming adds none.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.measures import Change, changes
from synod.errors import SettingsError
from trainer.algorithms.threshold import make_controller
from trainer.checkpoint import fingerprint
from trainer.evaluate.draw import digest_of
from trainer.evaluate.during import HeldOut
from trainer.evaluate.heldout import AFTER, BEFORE, conditions, evaluations, load_evaluation, step_of
from trainer.images import write_whole
from trainer.policy.base import Policy
from trainer.report.metrics import read
from trainer.report.page import write_report
from trainer.rewards.base import RewardBackend
from trainer.settings import TrainerSettings
from trainer.train import train

FACTS = "facts.json"  # in the run's directory: what the run was started with


def trained_s(record: Mapping[str, Any]) -> float:
    """Return the seconds of a step without its evaluation and its checkpoint."""
    seconds = record["seconds"]
    return float(seconds["total"] - seconds.get("evaluate", 0.0) - seconds.get("checkpoint", 0.0))


class Timed(HeldOut):
    """Evaluates a run at the first step at or after each of `marks_s`, and ends it at the last one.

    The run is also interrupted, to be resumed later, when `time.monotonic()` passes `deadline`.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        service: RewardBackend,
        log: Callable[[str], None],
        marks_s: Sequence[float],
        deadline: float = math.inf,
    ) -> None:
        super().__init__(settings, service, log)
        self._run_dir, self._marks_s, self._deadline = settings.run_dir, marks_s, deadline

    def is_due(self, step: int) -> bool:
        """Return whether a mark was passed in the last step."""
        before, now = self.spent_s(step - 1), self.spent_s(step)
        return step > 0 and any(before < mark <= now for mark in self._marks_s)

    def is_over(self, step: int) -> bool:
        """Return whether the run ends here, for good or for now."""
        return self.is_complete(step) or time.monotonic() >= self._deadline

    def is_complete(self, step: int) -> bool:
        """Return whether the last mark was passed."""
        return self.spent_s(step) >= self._marks_s[-1]

    def spent_s(self, step: int) -> float:
        """Return the seconds of training in the first `step` steps."""
        return math.fsum(trained_s(record) for record in read(self._run_dir) if record["step"] < step)


def train_timed(
    settings: TrainerSettings,
    policy: Policy,
    service: RewardBackend,
    marks_s: Sequence[float],
    *,
    trained_on: RewardBackend | None = None,
    deadline: float = math.inf,
    starts: Path | None = None,
    log: Callable[[str], None] = tqdm.write,
) -> bool:
    """Train until the last mark or the last step, evaluate, and return whether the run is complete.

    An incomplete one was stopped by a signal or by the deadline, and goes on when it is called again. `trained_on`
    rewards the training if it is not `service`, which rewards the evaluations. Runs with one start share its evaluation
    in the directory `starts`. Raises what `train` raises, and SettingsError if the run was started with other settings
    or weights.
    """
    facts = facts_of(settings, policy, marks_s)
    shared = None if starts is None else starts / facts["start"]
    if (settings.run_dir / AFTER).exists():
        check_facts(settings.run_dir / FACTS, facts)
        if shared is not None:
            _copy(settings.run_dir, shared)
        return True
    keep_facts(settings.run_dir / FACTS, facts)
    if shared is not None:
        _copy(shared, settings.run_dir)
    held_out = Timed(settings, service, log, marks_s, deadline)
    held_out.before(policy)
    if shared is not None:
        _copy(settings.run_dir, shared)
    controller = make_controller(settings.screen.threshold, settings.screen.target_pass_rate)
    state = train(settings, policy, trained_on or service, controller, log, held_out)
    if state.step < settings.steps and not held_out.is_complete(state.step):
        return False
    with state.averaged():
        held_out.after(policy, state.step)
    write_report(settings.run_dir)
    shutil.rmtree(settings.run_dir / "checkpoints", ignore_errors=True)
    return True


def curve(run_dir: Path) -> list[tuple[float, int, dict[str, Change]]]:
    """Return (minutes of training, steps, change since the start) of each evaluation after the start, in order."""
    records, (first, *others) = read(run_dir), evaluations(run_dir)
    before, found = load_evaluation(first), dict[int, tuple[float, int, dict[str, Change]]]()
    for path in others:
        step = step_of(path)
        step = len(records) if step is None else step
        minutes = math.fsum(trained_s(record) for record in records[:step]) / 60
        found[step] = (minutes, step, changes(before, load_evaluation(path)))
    return [found[step] for step in sorted(found)]


def facts_of(settings: TrainerSettings, policy: Policy, marks_s: Sequence[float]) -> dict[str, Any]:
    """Return what two runs must share to be the same experiment, as JSON values without paths.

    `weights` is a digest of the policy, `start` of what its evaluation before training depends on.
    """
    weights = digest_of(policy)
    start = json.dumps([weights, conditions(settings), settings.evaluate.prompts], sort_keys=True)
    return {
        **dict(sorted(fingerprint(settings).items())),
        "evaluate.prompts": settings.evaluate.prompts,
        "marks_s": [mark if math.isfinite(mark) else None for mark in marks_s],
        "steps": settings.steps,
        "weights": weights,
        "start": _digest(start),
    }


def keep_facts(path: Path, now: Mapping[str, Any]) -> None:
    """Write the facts that an experiment starts or continues with. Raises SettingsError if the file has others."""
    check_facts(path, now)
    write_whole(path, json.dumps(now, indent=1).encode())


def check_facts(path: Path, now: Mapping[str, Any], saved: Mapping[str, Any] | None = None) -> None:
    """Raise SettingsError if `saved`, else the file at `path`, has other facts. Without either nothing is wrong."""
    if saved is None:
        if not path.exists():
            return
        saved = json.loads(path.read_text())
    different = sorted(key for key in {*saved, *now} if saved.get(key) != now.get(key))
    if different:
        lines = "\n".join(f"  {key}: {saved.get(key)} there, {now.get(key)} now" for key in different)
        raise SettingsError(
            f"{path} is of a run with other settings or weights:\n{lines}\nRun with those settings, or remove it (with "
            "a run's directory, if it is in one) to measure again"
        )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _copy(source: Path, target: Path) -> None:
    """Copy the evaluation before training, if the source has one and the target has none; rows last."""
    if (source / BEFORE).exists() and not (target / BEFORE).exists():
        images = Path(BEFORE).with_suffix("")
        if (source / images).exists():  # nothing is drawn where answers alone are rewarded
            shutil.copytree(source / images, target / images, dirs_exist_ok=True)
        write_whole(target / BEFORE, (source / BEFORE).read_bytes())
