"""Compare the images of two confidences of the sampler: the same prompts, answers and random numbers, paired.

    make up && python -m benchmarks.confidence --prompts 480

Both draw one image of each held-out prompt with the policy that the settings name; "max_logp" minus "drawn" is printed
for the reward, its components and GenEval. Neither is trained.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from benchmarks.machine import command, machine
from trainer.data.source import wanted_rewards
from trainer.evaluate.compare import Evaluation, Paired, paired
from trainer.evaluate.heldout import evaluate, held_out
from trainer.rewards.base import RewardBackend
from trainer.rewards.service import RewardService
from trainer.run import make_policy
from trainer.settings import ShowOSettings, TrainerSettings, load

ROOT = Path(__file__).resolve().parents[1]
CONFIDENCES = ("drawn", "max_logp")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.confidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config",
        type=Path,
        nargs="?",
        default=ROOT / "deploy/configs/embedded.toml",
        help="settings TOML (%(default)s)",
    )
    parser.add_argument("--prompts", type=int, default=480, help="held-out prompts, an image of each (480)")
    parser.add_argument("--url", help="the service (default: the settings')")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/confidence.json", help="the result (%(default)s)"
    )
    options = parser.parse_args(arguments)
    changed = {"EVALUATE__PROMPTS": str(options.prompts), **({"REWARDS__URL": options.url} if options.url else {})}
    own = {f"SYNOD__TRAINER__{key}": value for key, value in changed.items()}
    settings = {
        name: load(options.config, {**os.environ, **own, "SYNOD__TRAINER__POLICY__SAMPLER__CONFIDENCE": name})
        for name in CONFIDENCES
    }
    with closing(RewardService(settings["drawn"].rewards, log=tqdm.write)) as service:
        service.wait_ready()
        service.check_served(wanted_rewards(settings["drawn"]))
        drawn, other = (_evaluation(settings[name], service) for name in CONFIDENCES)
    found = compare(drawn, other)
    result = {"command": command(), "machine": machine(), "max_logp - drawn": {k: asdict(v) for k, v in found.items()}}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, one in found.items():
        if one.difference is not None:
            error = "" if one.stderr is None else f" +- {one.stderr:.3f}"
            print(f"{name:<24}{one.before.mean:.3f} -> {one.after.mean:.3f}  {one.difference:+.3f}{error}  n {one.n}")
    return 0


def compare(drawn: Evaluation, other: Evaluation) -> dict[str, Paired]:
    """Return the paired comparison of two evaluations whose conditions differ on purpose."""
    return paired(drawn, replace(other, conditions=drawn.conditions))


def _evaluation(settings: TrainerSettings, service: RewardBackend) -> Evaluation:
    assert isinstance(settings.policy, ShowOSettings)
    confidence = settings.policy.sampler.confidence
    return evaluate(make_policy(settings), service, held_out(settings), settings, confidence)


if __name__ == "__main__":
    sys.exit(main())
