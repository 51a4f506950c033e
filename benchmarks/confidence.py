"""Compare the images of two orders of denoising: the same prompts, answers and random numbers, paired.

    make up && python -m benchmarks.confidence --prompts 480                        confidence: "max_logp" minus "drawn"
    make up && python -m benchmarks.confidence --prompts 480 --of schedule          schedule: "quadratic" minus "cosine"

Both draw one image of each held-out prompt with the policy that the settings name. The differences of the reward, its
components and GenEval are printed, and written to results/confidence.json or schedule.json. Neither is trained.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from benchmarks.arguments import exit_with
from benchmarks.machine import command, machine
from trainer.data.source import wanted_rewards
from trainer.evaluate.compare import Evaluation, Paired, paired
from trainer.evaluate.heldout import evaluate, held_out
from trainer.rewards.service import RewardService
from trainer.run import make_policy
from trainer.settings import load

ROOT = Path(__file__).resolve().parents[1]
COMPARED = {"confidence": ("drawn", "max_logp"), "schedule": ("cosine", "quadratic")}  # settings of the sampler


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
    parser.add_argument("--of", choices=COMPARED, default="confidence", help="the setting that differs (confidence)")
    parser.add_argument("--out", type=Path, help="the result (benchmarks/results/OF.json)")
    options = parser.parse_args(arguments)
    changed = {"EVALUATE__PROMPTS": str(options.prompts), **({"REWARDS__URL": options.url} if options.url else {})}
    own = {f"SYNOD__TRAINER__{key}": value for key, value in changed.items()}
    first, second = (
        load(options.config, {**os.environ, **own, f"SYNOD__TRAINER__POLICY__SAMPLER__{options.of.upper()}": value})
        for value in COMPARED[options.of]
    )
    with closing(RewardService(first.rewards, log=tqdm.write)) as service:
        service.wait_ready()
        service.check_served(wanted_rewards(first))
        labelled = zip(COMPARED[options.of], (first, second), strict=True)
        found = compare(*(evaluate(make_policy(s), service, held_out(s), s, label) for label, s in labelled))
    difference = " - ".join(COMPARED[options.of][::-1])
    result = {"command": command(), "machine": machine(), difference: {k: asdict(v) for k, v in found.items()}}
    out = options.out or ROOT / f"benchmarks/results/{options.of}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    for name, one in found.items():
        if one.difference is not None:
            error = "" if one.stderr is None else f" +- {one.stderr:.3f}"
            print(f"{name:<24}{one.before.mean:.3f} -> {one.after.mean:.3f}  {one.difference:+.3f}{error}  n {one.n}")
    return 0


def compare(first: Evaluation, second: Evaluation) -> dict[str, Paired]:
    """Return the paired comparison of two evaluations whose conditions differ on purpose."""
    return paired(first, replace(second, conditions=first.conditions))


if __name__ == "__main__":
    exit_with(main)
