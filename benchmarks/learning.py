"""Train twice on a running service: with its rewards, and with rewards permuted within each group.

    make up && python -m benchmarks.learning --steps 100 --prompts 1000

Both runs start from the same policy and are evaluated on the same held-out prompts and random numbers; the start is
evaluated once for both. A fifth of the prompts are GenEval's, whose verdicts are noisy (standard deviation 0.4), and
a lucky start would lower every run compared with it: hence the 1000 prompts.
The control run has the same rewards, spread and screen, but assigns rewards to rollouts at random, so it must not rise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import command, machine
from synod.contracts import ScoreItem
from trainer.algorithms.threshold import make_controller
from trainer.data.source import wanted_rewards
from trainer.evaluate.compare import paired
from trainer.evaluate.heldout import AFTER, BEFORE, evaluate, held_out, load_evaluation, save_evaluation
from trainer.report.metrics import read
from trainer.rewards.base import RewardBackend
from trainer.rewards.service import RewardService
from trainer.run import make_policy, run
from trainer.settings import TrainerSettings, load
from trainer.train import train
from trainer.types import Reward, RewardSpec

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "deploy/configs/embedded.toml"
_AFTER = shutil.ignore_patterns(f"{Path(AFTER).stem}*")


class Permuted:
    """A service that permutes rewards within each group of `group` images."""

    def __init__(self, service: RewardBackend, group: int, seed: int) -> None:
        self._service, self._group, self._rng = service, group, np.random.default_rng(seed)
        self._open: list[Future[list[Reward]]] = []
        self._count = 0

    def submit_previews(self, items: Sequence[ScoreItem], reward: RewardSpec | None = None) -> Future[list[Reward]]:
        return self._service.submit_previews(items, reward)

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        if self._count == 0:
            self._open, self._order = [], self._rng.permutation(self._group)
        start, self._count = self._count, (self._count + len(items)) % self._group
        self._open.append(self._service.submit(items, reward))
        return _Slice(self._open, self._order[start : start + len(items)].tolist())


class _Slice(Future[list[Reward]]):
    """Resolves on `result`, once the whole group has been submitted."""

    def __init__(self, parts: list[Future[list[Reward]]], places: Sequence[int]) -> None:
        super().__init__()
        self._parts, self._places = parts, places

    def result(self, timeout: float | None = None) -> list[Reward]:
        rewards = [reward for part in self._parts for reward in part.result(timeout)]
        return [rewards[place] for place in self._places]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=1000, help="held-out prompts, before and after")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/learning", help="where the two runs go")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/learning.json")
    parser.add_argument("--only", choices=("rewards", "permuted"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only:
        return _one(options, options.only)
    names = ("rewards", "permuted")
    given = [f"--{key}={getattr(options, key)}" for key in ("steps", "prompts", "url", "runs")]
    for name in names:
        if name == "permuted":
            shutil.copytree(
                options.runs / "rewards/evaluation",
                options.runs / "permuted/evaluation",
                ignore=_AFTER,
                dirs_exist_ok=True,
            )
        code = subprocess.call([sys.executable, "-m", "benchmarks.learning", "--only", name, *given], cwd=ROOT)
        if code:
            return code
    found = {name: _summary(options.runs / name) for name in names}
    result = {"command": command(), "machine": machine(), **found}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: one["heldout"]["reward"] for name, one in found.items()}, indent=1))
    return 0


def _one(options: argparse.Namespace, name: str) -> int:
    settings = _settings(options, name)
    return run(settings) if name == "rewards" else _run_control(settings)


def _run_control(settings: TrainerSettings) -> int:
    """Train on permuted rewards, then evaluate on the service's own; `before` is the other run's."""
    policy = make_policy(settings)
    with closing(RewardService(settings.rewards)) as service:
        service.wait_ready()
        service.check_served(wanted_rewards(settings))
        permuted = Permuted(service, settings.screen.images, settings.seed)
        controller = make_controller(settings.screen.threshold, settings.screen.target_pass_rate)
        train(settings, policy, permuted, controller)
        save_evaluation(settings.run_dir / AFTER, evaluate(policy, service, held_out(settings), settings))
    return 0


def _settings(options: argparse.Namespace, name: str) -> TrainerSettings:
    changed = {
        "STEPS": options.steps,
        "RUN_DIR": f'"{(options.runs / name).resolve()}"',
        "REWARDS__URL": options.url,
        "EVALUATE__PROMPTS": options.prompts,
    }
    return load(CONFIG, {**os.environ, **{f"SYNOD__TRAINER__{key}": str(value) for key, value in changed.items()}})


def _summary(folder: Path) -> dict[str, Any]:
    records = read(folder)
    changes = paired(load_evaluation(folder / BEFORE), load_evaluation(folder / AFTER))
    seconds = [record["seconds"]["total"] for record in records]
    return {
        "steps": len(records),
        "minutes_in_steps": round(sum(seconds) / 60, 2),
        "reward_first_20_steps": float(
            np.mean([r["reward_mean"] for r in records[:20] if r["reward_mean"] is not None])
        ),
        "reward_last_20_steps": float(
            np.mean([r["reward_mean"] for r in records[-20:] if r["reward_mean"] is not None])
        ),
        "masked": sum(r["masked"] for r in records),
        "skipped": sum(r["skipped"] for r in records),
        "heldout": {name: asdict(change) for name, change in changes.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
