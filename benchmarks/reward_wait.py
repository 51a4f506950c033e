"""Measure the share of a training step that waits for the reward service, with scorers that take two seconds a call.

    python -m benchmarks.reward_wait

The embedded Show-o trains a few steps with the settings of deploy/configs/embedded.toml (groups of 9 of at most 36
previews, drawn 12 at a time), for several numbers of prompts in a step. The client is the trainer's own; behind it is a
service in this process that answers every request after LATENCY_S, any number at once. Surrogate scores are uniform
random numbers, and a quarter of them pass the threshold, as in the middle of a run. Nothing else should run on
the machine.

`--paced` replaces the Show-o by a policy that sleeps as long as that computes on an idle machine (docs/log.md), so that
a busy machine measures what a step waits, too.

To measure other code: `PYTHONPATH=TREE python benchmarks/reward_wait.py`, in the directory TREE.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import httpx
import numpy as np

from benchmarks.arguments import exit_with
from benchmarks.machine import command, machine
from synod.codec import CODECS
from synod.contracts import ItemResult, Pixels, Score, ScoreResponse
from trainer.algorithms.threshold import ThresholdState
from trainer.clock import Clock
from trainer.distributed import ONE_RANK
from trainer.policy.base import Policy
from trainer.report.metrics import read
from trainer.rewards.service import RewardService
from trainer.rollout import draw_groups
from trainer.run import make_policy
from trainer.screen_plan import ScreenPlan, fixed_plan
from trainer.settings import TrainerSettings, load
from trainer.train import train
from trainer.types import Prompt, RewardSpec, Seed, Task

ROOT = Path(__file__).resolve().parents[1]
CONFIG = Path("deploy/configs/embedded.toml")
PROMPTS, STEPS, LATENCY_S, PASS_RATE = (1, 2, 4), 2, 2.0, 0.25
SCREEN = {"SCREEN__SELECT": "first_above", "SCREEN__MAX_PREVIEWS": 36}
STEP_S, UPDATE_S = 0.0075, 1.5  # of the embedded Show-o: a sampling step of an image, the update of a group
WIRE = CODECS["application/msgpack"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reward_wait",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPTS, help="prompts_per_step of each case")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each case")
    parser.add_argument("--latency", type=float, default=LATENCY_S, help="seconds that every request takes")
    parser.add_argument("--paced", action="store_true", help="sleep in place of computing")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/reward_wait.json", help="the result (%(default)s)"
    )
    options = parser.parse_args(arguments)
    result = {"command": command(), "machine": machine()}
    result |= measure(options.prompts, options.steps, options.latency, paced=options.paced)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["by_prompts_per_step"], indent=1))
    return 0


def measure(
    prompts: Sequence[int] = PROMPTS, steps: int = STEPS, latency_s: float = LATENCY_S, *, paced: bool = False
) -> dict[str, Any]:
    """Return, for each number of prompts in a step, mean seconds of a step and of its waits, and their shares."""
    case = _paced_case if paced else _case
    found = {str(count): case(count, steps, latency_s) for count in prompts}
    return {"latency_s": latency_s, "steps": steps, "paced": paced, "by_prompts_per_step": found}


@dataclass
class Fixed:
    """A threshold of uniform scores that PASS_RATE of them pass; records how many previews each group drew."""

    drawn: list[int] = field(default_factory=list)

    def initial_state(self) -> ThresholdState:
        return ThresholdState(1 - PASS_RATE)

    def update(
        self, state: ThresholdState, scores: Sequence[float], drawn: int, passed: int, capped: bool
    ) -> ThresholdState:
        self.drawn.append(drawn)
        return state


def _case(prompts: int, steps: int, latency_s: float) -> dict[str, float]:
    """Return the summary of `steps` steps after a first one, which warms up."""
    with TemporaryDirectory() as folder:
        settings, controller = _settings(prompts, steps + 1, folder), Fixed()
        with closing(_service(settings, latency_s)) as service:
            train(settings, make_policy(settings), service, controller)
        seconds = [record["seconds"] for record in read(settings.run_dir)]
    batches = [math.ceil(drawn / settings.screen.preview_batch_size) for drawn in controller.drawn]
    by_step = [batches[first : first + prompts] for first in range(0, len(batches), prompts)]
    return summary(seconds[1:], by_step[1:], latency_s)


def _paced_case(prompts: int, steps: int, latency_s: float) -> dict[str, float]:
    settings, clock, policy = _settings(prompts, steps, "."), Clock(), cast(Policy, Paced())
    tasks = [Task("key", "none", Prompt(f"prompt {i}", "tag"), RewardSpec({"any": 1.0})) for i in range(prompts)]
    seconds, batches = [], []
    with closing(_service(settings, latency_s)) as service:
        for step in range(steps):
            key = (settings.seed, step)
            groups = draw_groups(policy, service, tasks, key, 0, _plan, settings, clock, ONE_RANK)
            with clock("update"):
                time.sleep(prompts * UPDATE_S)
            seconds.append(clock.lap())
            drawn = [group.previews.screened.drawn for group in groups]
            batches.append([math.ceil(count / settings.screen.preview_batch_size) for count in drawn])
    return summary(seconds, batches, latency_s)


@dataclass(frozen=True)
class _Drawn:
    seed: Seed
    step: int = 0
    kind: str = "image"


class Paced:
    """Draws random images, and sleeps STEP_S for each sampling step of each."""

    image_steps = 10

    def start(self, prompts: Sequence[str], seeds: Sequence[Seed]) -> list[_Drawn]:
        return [_Drawn(seed) for seed in seeds]

    def denoise(self, segments: Sequence[_Drawn], until: int) -> list[_Drawn]:
        time.sleep(STEP_S * sum(until - one.step for one in segments))
        return [_Drawn(one.seed, until) for one in segments]

    def images(self, segments: Sequence[_Drawn]) -> list[Pixels]:
        return [
            np.random.default_rng((*one.seed, one.step)).integers(256, size=(8, 8, 3), dtype=np.uint8)
            for one in segments
        ]


def _plan(task: Task, settings: TrainerSettings, key: Sequence[int]) -> ScreenPlan:
    return fixed_plan(task, settings, 1 - PASS_RATE)


def _settings(prompts: int, steps: int, folder: str) -> TrainerSettings:
    changed = {"PROMPTS_PER_STEP": prompts, "STEPS": steps, "RUN_DIR": f'"{folder}"', **SCREEN}
    return load(CONFIG, environ={f"SYNOD__TRAINER__{key}": str(value) for key, value in changed.items()})


def _service(settings: TrainerSettings, latency_s: float) -> RewardService:
    return RewardService(settings.rewards, transport=httpx.MockTransport(lambda request: answer(request, latency_s)))


def answer(request: httpx.Request, latency_s: float) -> httpx.Response:
    """Score each image by its checksum, a uniform random number in [0, 1), after `latency_s`."""
    asked = WIRE.decode_request(request.content)
    scores = [Score(zlib.crc32(item.pixels().tobytes()) / 2**32) for item in asked.items]
    results = [ItemResult(dict.fromkeys(asked.scorers, one), None if asked.ensemble is None else one) for one in scores]
    time.sleep(latency_s)
    content = WIRE.encode_response(ScoreResponse(tuple(results), asked.request_id or ""))
    return httpx.Response(200, content=content, headers={"content-type": WIRE.content_type})


def summary(
    seconds: Sequence[Mapping[str, float]], batches: Sequence[Sequence[int]], latency_s: float
) -> dict[str, float]:
    """Return mean seconds of steps and of their waits, and the least possible wait; `batches` of each group of each."""
    waits = {name: statistics.fmean(one.get(name, 0.0) for one in seconds) for name in ("surrogate", "reward_wait")}
    total, waited = statistics.fmean(one["total"] for one in seconds), sum(waits.values())
    least = statistics.fmean(least_wait_s(*step, latency_s) for step in zip(batches, seconds, strict=True))
    return {
        "seconds": round(total, 2),
        **{f"{name}_s": round(spent, 2) for name, spent in waits.items()},
        "share": round(waited / total, 4),
        "least_wait_s": round(least, 2),
        "least_share": round(least / (total - waited + least), 4),
        "batches": round(statistics.fmean(map(sum, batches)), 2),
    }


def least_wait_s(batches: Sequence[int], seconds: Mapping[str, float], latency_s: float) -> float:
    """Return a lower bound of the seconds that a step waits whose groups take `batches`, whatever is done first.

    The rewards of the last images take one latency. A group is finished after its batches are drawn and the last is
    scored; what that exceeds the time of drawing and finishing all groups is waited for, too.
    """
    drawing = sum(seconds.get(phase, 0.0) for phase in ("reason", "preview", "decode"))
    finishing = seconds.get("finish", 0.0)
    chain = max(batches) * drawing / sum(batches) + latency_s + finishing / len(batches)
    return latency_s + max(0.0, chain - drawing - finishing)


if __name__ == "__main__":
    exit_with(main)
