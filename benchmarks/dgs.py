"""Compare ways to choose rollouts at equal training time, over several seeds: a queue of runs that resumes.

    make up && python -m benchmarks.dgs --minutes 20 --seeds 3 --prompts 240

Each recipe of `benchmarks.arms` trains for --minutes with each seed, one run at a time, and is evaluated on the same
held-out prompts and random numbers before, at --marks equal parts of the time, and after it. All recipes are
trained with seed 0 first, then with seed 1. A finished run is written to OUT without its suffix, one file a recipe, and
OUT itself is computed from these files. The same command skips finished runs and continues a started one; Ctrl-C,
SIGTERM and --hours stop it. Nothing else may run on the machine.

Time: an evaluation takes 0.14 s an image at 64 px on two idle cores (240: 34 s; 1000: 2.4 minutes), and each run makes
--marks of them. Nine recipes with three seeds, 20 minutes and 240 prompts take 27 x (20 + 4 x 0.6) minutes = 10 hours.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tqdm import tqdm

from benchmarks.arguments import count, duration, exit_with
from benchmarks.arms import ARMS, Permuted, settings_of
from benchmarks.dgs_summary import Result, summary, table
from benchmarks.machine import command, commit, machine
from benchmarks.measures import to_document
from benchmarks.resumable import finish
from benchmarks.timed import check_facts, curve, facts_of, train_timed
from trainer.data.source import wanted_rewards
from trainer.errors import NonFinite
from trainer.images import write_whole
from trainer.policy.base import Policy
from trainer.report.metrics import read
from trainer.rewards.base import RewardBackend
from trainer.rewards.service import RewardService
from trainer.run import make_policy
from trainer.settings import TrainerSettings

ROOT: Final = Path(__file__).resolve().parents[1]
CONFIG: Final = ROOT / "deploy/configs/embedded.toml"
EVALUATION_S: Final = 0.14  # an image, on two idle cores


@dataclass(frozen=True)
class Run:
    """One recipe with one seed."""

    arm: str
    seed: int
    settings: TrainerSettings


@dataclass(frozen=True)
class Queue:
    """What to run and where results go. `policy_of` and `service_of` make what a run trains and is rewarded by."""

    runs: Sequence[Run]
    marks_s: Sequence[float]
    out: Path
    starts: Path
    policy_of: Callable[[TrainerSettings], Policy] = make_policy
    service_of: Callable[[TrainerSettings], AbstractContextManager[RewardBackend]] = lambda s: closing(open_service(s))

    def work(self, deadline: float = math.inf) -> bool:
        """Finish one run after the other; return whether all are finished.

        Raises SettingsError for a finished or started run with other settings or weights.
        """
        self._check()
        for run in self.runs:
            if self._finished(run) is not None:
                continue
            if time.monotonic() >= deadline or not self._train(run, deadline):
                return False
            self.summarise()
        return True

    def summarise(self) -> Result:
        """Write OUT from the files of the recipes, and return it."""
        arms = {name: found for name in ARMS if (found := _read(self._file(name)))}
        result = {"command": command(), "commit": commit(), "machine": machine()}
        result |= summary({name: list(one["runs"].values()) for name, one in arms.items()})
        _write(self.out, result)
        return result

    def _check(self) -> None:
        """Compare every finished run with the present settings, before anything is trained."""
        digests: dict[str, Policy] = {}
        for run in self.runs:
            found = self._finished(run)
            if found is not None:
                policy = digests.setdefault(run.arm, self.policy_of(run.settings))
                check_facts(self._file(run.arm), facts_of(run.settings, policy, self.marks_s), found["facts"])

    def _train(self, run: Run, deadline: float) -> bool:
        """Train a run as far as it goes, and record it if it is complete; return whether it is."""
        tqdm.write(f"{run.arm}, seed {run.seed}: {ARMS[run.arm].about}")
        policy = self.policy_of(run.settings)
        facts = facts_of(run.settings, policy, self.marks_s)
        with self.service_of(run.settings) as service:
            trained_on = Permuted(service, run.seed) if ARMS[run.arm].permuted else service
            try:
                complete = train_timed(
                    run.settings,
                    policy,
                    service,
                    self.marks_s,
                    trained_on=trained_on,
                    deadline=deadline,
                    starts=self.starts,
                )
            except NonFinite as error:  # a recipe may diverge; the others are still worth comparing
                tqdm.write(f"{run.arm}, seed {run.seed} failed: {error}")
                self._record(run, {"failed": str(error), "facts": facts})
                return True
        if complete:
            self._record(run, {**record(run.settings.run_dir), "facts": facts})
        return complete

    def _record(self, run: Run, found: Result) -> None:
        saved = _read(self._file(run.arm)) or {"arm": run.arm, "about": ARMS[run.arm].about, "runs": {}}
        made = {"seed": run.seed, "command": command(), "commit": commit(), "machine": machine()}
        saved["runs"][str(run.seed)] = {**made, **found}
        _write(self._file(run.arm), saved)

    def _finished(self, run: Run) -> Result | None:
        found: Result | None = (_read(self._file(run.arm)) or {"runs": {}})["runs"].get(str(run.seed))
        return found

    def _file(self, arm: str) -> Path:
        return self.out.with_suffix("") / f"{arm}.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Work through the queue; exit status 0: all runs are finished."""
    options = _parser().parse_args(arguments)
    deadline = time.monotonic() + 3600 * options.hours
    marks_s = [60 * options.minutes * (i + 1) / options.marks for i in range(options.marks)]
    runs = [Run(arm, seed, _settings(arm, seed, options)) for seed in range(options.seeds) for arm in options.arms]
    queue = Queue(runs, marks_s, options.out, options.runs / "starts")
    if options.summary:
        print(table(queue.summarise()))
        return 0
    hours = len(runs) * (options.minutes + options.marks * options.prompts * EVALUATION_S / 60) / 60
    tqdm.write(f"{len(runs)} runs of {options.minutes:g} minutes, {hours:.1f} hours with their evaluations at most")

    def work() -> bool:
        for run in {run.arm: run for run in runs}.values():
            with closing(open_service(run.settings)):
                pass  # what a recipe needs and the service lacks is found before the first run
        return queue.work(deadline)

    status = finish(options.runs, work)
    print(table(queue.summarise()))
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dgs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=duration, default=20.0, help="training time of a run (20)")
    parser.add_argument("--seeds", type=count, default=3, help="seeds of each recipe: 0, 1, ... (3)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--prompts", type=count, default=240, help="held-out prompts of each evaluation (240)")
    parser.add_argument("--marks", type=count, default=4, help="evaluations of a run after its start (4)")
    parser.add_argument("--hours", type=float, default=math.inf, help="stop after this time")
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings TOML (%(default)s)")
    parser.add_argument("--url", help="the service (default: the settings')")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/dgs", help="directories of the runs (runs/dgs)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/dgs.json", help="the result (%(default)s)"
    )
    parser.add_argument("--summary", action="store_true", help="write OUT from the finished runs; train nothing")
    return parser


def _settings(arm: str, seed: int, options: argparse.Namespace) -> TrainerSettings:
    folder = options.runs / arm / f"seed-{seed}"
    permuted = ARMS[arm].permuted
    return settings_of(
        arm, options.config, folder, seed=seed, prompts=options.prompts, permuted=permuted, url=options.url
    )


def open_service(settings: TrainerSettings) -> RewardService:
    """Return the settings' service, ready and checked. Raises what its checks raise."""
    service = RewardService(settings.rewards, log=tqdm.write)
    try:
        service.wait_ready()
        service.check_served(wanted_rewards(settings))
    except BaseException:
        service.close()
        raise
    return service


def record(run_dir: Path) -> Result:
    """Return the figures of a finished run: its curve, and the change of every measure at its end.

    `screens` and `signal_per_second` are those of "auto" or of an audit at the end.
    """
    points = curve(run_dir)
    minutes, steps, last = points[-1]
    step = read(run_dir)[-1]
    return {
        **{name: step[name] for name in ("screens", "signal_per_second") if name in step},
        "minutes": round(minutes, 3),
        "steps": steps,
        "heldout": to_document(last),
        "curve": [
            {"minutes": round(at, 3), "steps": done, "gain": {name: one.difference for name, one in found.items()}}
            for at, done, found in points
        ],
    }


def _read(path: Path) -> Result | None:
    return json.loads(path.read_text()) if path.exists() else None


def _write(path: Path, document: Result) -> None:
    write_whole(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


if __name__ == "__main__":
    exit_with(main)
