"""The commands `synod train CONFIG`, `synod train report RUN`, `synod personalize CONFIG`, `synod evaluate POLICY`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from synod import memory
from synod.errors import SettingsError, SynodError
from trainer.errors import NonFinite, OtherRankFailed, OutOfMemory, RewardServiceUnavailable, WorkersFailed
from trainer.settings import TrainerSettings, load

DESCRIPTION = """Train a policy by Sync-GRPO on the rewards of a running service (`make up` starts one).

A run has one directory ([trainer] run_dir): checkpoints/, metrics.jsonl, samples.jsonl, images/, tensorboard/,
evaluation/ (held-out prompts before and after) and, when it ends, policy/ (the trained model) and report.html.
The same command resumes a stopped run from its last checkpoint; a new run needs a new directory.
"""
EXAMPLES = """examples:
  synod train deploy/configs/embedded.toml
  synod train deploy/configs/embedded.toml --steps 25 --run-dir runs/short
  SYNOD__TRAINER__OPTIMIZER__LR=5e-5 synod train deploy/configs/embedded.toml --run-dir runs/lower
  synod train deploy/configs/embedded.toml --with deploy/configs/ablations/without_dgs.toml --run-dir runs/no_dgs
  synod train deploy/configs/embedded.toml --dry-run    time and memory of one group, before a long run
  torchrun --standalone --nproc-per-node 8 --shutdown-timeout 600 -m trainer CONFIG.toml   on 8 GPUs of this machine
  SYNOD__TRAINER__RANKS__WORKERS=8 synod train CONFIG.toml      in 8 workers of a Ray cluster, each with one GPU
  SYNOD__TRAINER__RANKS__WORKERS=2 SYNOD__TRAINER__RANKS__GPUS=0 synod train CONFIG.toml      in 2 without GPUs
  synod train report runs/train          write runs/train/report.html, even during training
"""

RUN_ERRORS: Final = (RewardServiceUnavailable, NonFinite, OutOfMemory, OtherRankFailed, WorkersFailed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 1 for an error, 130 for an interrupt.

    `evaluate`, `personalize`, `warm` and `verify` have exit statuses of their own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["warm"], ["verify"]):
        from trainer.models import main as check_models  # imported here: it needs torch

        return check_models(given)
    if given[:1] == ["personalize"]:
        from trainer.personalize.command import main as personalize

        return personalize(given[1:])
    if given[:1] == ["evaluate"]:
        from trainer.evaluate.command import main as evaluate

        return evaluate(given[1:])
    try:
        return _report(given[1:]) if given[:1] == ["report"] else _train(given)
    except (SynodError, SettingsError, *RUN_ERRORS, OSError) as error:
        print(f"synod train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _train(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="synod train",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", type=Path, help="settings TOML with a [trainer] table, such as deploy/configs/embedded.toml"
    )
    parser.add_argument(
        "--with",
        dest="changes",
        type=Path,
        action="append",
        default=[],
        metavar="TOML",
        help="settings that replace those of CONFIG, such as deploy/configs/ablations/without_tia.toml; repeatable",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="override [trainer] steps")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="override [trainer] run_dir")
    parser.add_argument("--url", help="override [trainer.rewards] url")
    parser.add_argument(
        "--dry-run", action="store_true", help="draw one group, print time and memory of each phase, save nothing"
    )
    parser.add_argument("--no-evaluation", action="store_true", help="make no held-out evaluation")
    options = parser.parse_args(arguments)
    overrides = {
        "STEPS": options.steps,
        "RUN_DIR": options.run_dir and f'"{options.run_dir.resolve()}"',
        "REWARDS__URL": options.url,
    }
    environ = {f"SYNOD__TRAINER__{key}": str(value) for key, value in overrides.items() if value is not None}
    settings = load(options.config, {**os.environ, **environ}, options.changes)
    return _dry_run(settings) if options.dry_run else _run(settings, evaluated=not options.no_evaluation)


def _run(settings: TrainerSettings, *, evaluated: bool) -> int:
    memory.keep_freed_memory()
    from trainer.launch import launch  # imported here: --help and a wrong setting need no torch

    return launch(settings, evaluated=evaluated)


def _dry_run(settings: TrainerSettings) -> int:
    memory.keep_freed_memory()
    from trainer.dry_run import dry_run

    return dry_run(settings)


def _report(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="synod train report", description="Write RUN/report.html.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the directory of a run, finished or not")
    from trainer.report.page import write_report

    print(f"wrote {write_report(parser.parse_args(arguments).run)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
