"""Train one recipe on a running service, and again with rewards permuted within each group: the control.

    make up && python -m benchmarks.learning --arm extremes --minutes 30 --prompts 1000

Both runs start from the same policy, train as long, and are evaluated on the same held-out prompts and random numbers;
the start is evaluated once for both. The control has the same rewards and spread, but assigns them to rollouts at
random, so it must not rise. Writes OUT, and next to it a PNG of the first held-out images before and after training.
The same command skips what is finished and continues what was started; Ctrl-C, SIGTERM and --hours stop it.

A fifth of the prompts are GenEval's, whose verdicts are noisy (standard deviation 0.4): hence the 1000 prompts. Time:
three evaluations of 0.14 s an image at 64 px on two idle cores (1000 images: 2.4 minutes), and twice --minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.arguments import count, duration, exit_with
from benchmarks.arms import ARMS, NEVER, OURS, Permuted, settings_of
from benchmarks.dgs import open_service
from benchmarks.grid import before_after
from benchmarks.machine import command, commit, machine
from benchmarks.measures import PRIMARY, Change, changes, line, to_document
from benchmarks.resumable import finish
from benchmarks.timed import FACTS, train_timed, trained_s
from trainer.evaluate.compare import paired, summary
from trainer.evaluate.heldout import AFTER, BEFORE, load_evaluation
from trainer.images import write_whole
from trainer.policy.base import Policy
from trainer.report.metrics import read, steps_saved
from trainer.rewards.base import RewardBackend
from trainer.run import make_policy
from trainer.settings import TrainerSettings

ROOT: Final = Path(__file__).resolve().parents[1]
CONFIG: Final = ROOT / "deploy/configs/embedded.toml"
RUNS: Final = ("rewards", "permuted")
WINDOW: Final = 20  # steps
RISE: Final = 0.04  # of the image part, which is to be seen


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and evaluate both runs; exit status 0: both are finished."""
    options = _parser().parse_args(arguments)
    deadline = time.monotonic() + 3600 * options.hours
    marks_s = [math.inf if options.steps else 60 * options.minutes]
    settings = {name: _settings(options, name) for name in RUNS}

    def work() -> bool:
        for name in RUNS:
            with closing(open_service(settings[name])) as service:
                if not train_run(name, settings[name], make_policy, service, marks_s, options.runs, deadline):
                    return False
        _write(options, settings)
        return True

    return finish(options.runs, work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arm", choices=ARMS, default=OURS, metavar="ARM", help=f"{', '.join(ARMS)} ({OURS})")
    parser.add_argument("--minutes", type=duration, default=30.0, help="training time of each run (30)")
    parser.add_argument("--steps", type=count, help="train so many steps in place of --minutes")
    parser.add_argument("--prompts", type=count, default=1000, help="held-out prompts, before and after (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of both runs (0)")
    parser.add_argument("--shown", type=count, default=16, help="prompts in the PNG, at most 24 (16)")
    parser.add_argument("--hours", type=float, default=math.inf, help="stop after this time")
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings TOML (%(default)s)")
    parser.add_argument("--with", dest="changes", type=Path, action="append", default=[], help="TOML of other settings")
    parser.add_argument("--url", help="the service (default: the settings')")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/learning", help="where the two runs go")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/learning.json", help="the result (%(default)s)"
    )
    return parser


def _settings(options: argparse.Namespace, name: str) -> TrainerSettings:
    return settings_of(
        options.arm,
        options.config,
        options.runs / name,
        seed=options.seed,
        prompts=options.prompts,
        permuted=name == "permuted",
        steps=options.steps or NEVER,
        url=options.url,
        changes=options.changes,
    )


def train_run(
    name: str,
    settings: TrainerSettings,
    policy_of: Callable[[TrainerSettings], Policy],
    service: RewardBackend,
    marks_s: Sequence[float],
    runs: Path,
    deadline: float = math.inf,
) -> bool:
    """Train and evaluate one of RUNS; return whether it is complete. Raises what `train_timed` raises."""
    return train_timed(
        settings,
        policy_of(settings),
        service,
        marks_s,
        trained_on=Permuted(service, settings.seed) if name == "permuted" else None,
        deadline=deadline,
        starts=runs / "starts",
    )


def _write(options: argparse.Namespace, settings: Mapping[str, TrainerSettings]) -> None:
    folders = {name: one.run_dir for name, one in settings.items()}
    found = {name: changes_of(folder) for name, folder in folders.items()}
    image = options.out.with_suffix(".png")
    result = {
        "command": command(),
        "commit": commit(),
        "machine": machine(),
        "arm": options.arm,
        "about": ARMS[options.arm].about,
        "seed": options.seed,
        "image": image.name,
        "settings": json.loads((folders["rewards"] / FACTS).read_text()),
        "verdicts": verdicts(found["rewards"], found["permuted"]),
        **{name: {**figures(folder), "heldout": to_document(found[name])} for name, folder in folders.items()},
    }
    write_whole(options.out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    before_after(folders["rewards"], options.shown).save(image, optimize=True)
    for name in RUNS:
        print(name, *(f"  {line(measure, change)}" for measure, change in found[name].items()), sep="\n")
    print(json.dumps(result["verdicts"], indent=1))


def changes_of(run_dir: Path) -> dict[str, Change]:
    """Return the change of every measure in a finished run."""
    return changes(load_evaluation(run_dir / BEFORE), load_evaluation(run_dir / AFTER))


def verdicts(trained: Mapping[str, Change], control: Mapping[str, Change]) -> dict[str, bool | None]:
    """Return what the runs show; None where it was not measured. Errors are the larger of both of a change."""
    rise = trained.get(PRIMARY)
    return {
        f"{PRIMARY} up by 3 errors": above(rise, 3),
        f"{PRIMARY} up by {RISE}": None if rise is None else rise.difference >= RISE,
        "geneval official not down by 2 errors": above(trained.get("geneval official"), -2),
        "tier not down by 2 errors": above(trained.get("tier"), -2),
        "control within 2 errors of 0": within(control.get(PRIMARY), 2),
    }


def above(change: Change | None, errors: float) -> bool | None:
    """Return whether a change is above so many of its errors; None where it was not measured."""
    return None if change is None or change.error is None else change.difference > errors * change.error


def within(change: Change | None, errors: float) -> bool | None:
    """Return whether a change is within so many of its errors of 0; None where it was not measured."""
    return None if change is None or change.error is None else abs(change.difference) <= errors * change.error


def figures(run_dir: Path) -> dict[str, Any]:
    """Return what a run's records say about its training, and the changes by pathway, component and tag.

    `seconds` are those of the whole run by phase; `screens` and `signal_per_second` those of "auto" at its end.
    """
    records = read(run_dir)
    phases = dict.fromkeys(phase for record in records for phase in record["seconds"])
    by_measure = paired(load_evaluation(run_dir / BEFORE), load_evaluation(run_dir / AFTER))
    return {
        "steps": len(records),
        "minutes": round(math.fsum(map(trained_s, records)) / 60, 2),
        f"reward_first_{WINDOW}_steps": summary(record["reward_mean"] for record in records[:WINDOW]).mean,
        f"reward_last_{WINDOW}_steps": summary(record["reward_mean"] for record in records[-WINDOW:]).mean,
        **{name: sum(record[name] for record in records) for name in ("masked", "skipped", "previews", "kept")},
        "denoising_steps_saved_ratio": steps_saved(records),
        "seconds": {name: round(math.fsum(one["seconds"].get(name, 0.0) for one in records), 1) for name in phases},
        **{name: records[-1][name] for name in ("screens", "signal_per_second") if name in records[-1]},
        "by_measure": {name: asdict(change) for name, change in by_measure.items()},
    }


if __name__ == "__main__":
    exit_with(main)
