"""Measure the share of a training step that waits for the reward service, with scorers that take two seconds a call.

    python -m benchmarks.reward_wait

The embedded Show-o trains a few steps with the settings of deploy/configs/embedded.toml (groups of 9 of at most 36
previews, drawn 12 at a time), for several numbers of prompts in a step. The client is the trainer's own; behind it is a
service in this process that answers every request after LATENCY_S, any number at once. Surrogate scores are uniform
random numbers, and a quarter of them pass the threshold, as in the middle of a run. Nothing else should run on
the machine.

To measure other code: `PYTHONPATH=TREE python benchmarks/reward_wait.py`, in the directory TREE.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from benchmarks.machine import command, machine
from synod.codec import CODECS
from synod.contracts import ItemResult, Score, ScoreResponse
from trainer.algorithms.threshold import ThresholdState
from trainer.report.metrics import read
from trainer.rewards.service import RewardService
from trainer.run import make_policy
from trainer.settings import load
from trainer.train import train

ROOT = Path(__file__).resolve().parents[1]
CONFIG = Path("deploy/configs/embedded.toml")
PROMPTS, STEPS, LATENCY_S, PASS_RATE = (1, 2, 4), 2, 2.0, 0.25
WIRE = CODECS["application/msgpack"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reward_wait", description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPTS, help="prompts_per_step of each case")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--latency", type=float, default=LATENCY_S, help="seconds that every request takes")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/reward_wait.json")
    options = parser.parse_args(arguments)
    result = {"command": command(), "machine": machine()}
    result |= measure(options.prompts, options.steps, options.latency)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["by_prompts_per_step"], indent=1))
    return 0


def measure(prompts: Sequence[int] = PROMPTS, steps: int = STEPS, latency_s: float = LATENCY_S) -> dict[str, Any]:
    """Return, for each number of prompts in a step, mean seconds of a step and of its waits, and their shares."""
    found = {str(count): _case(count, steps, latency_s) for count in prompts}
    return {"latency_s": latency_s, "steps": steps, "by_prompts_per_step": found}


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
        changed = {"PROMPTS_PER_STEP": prompts, "STEPS": steps + 1, "RUN_DIR": f'"{folder}"'}
        settings = load(CONFIG, environ={f"SYNOD__TRAINER__{key}": str(value) for key, value in changed.items()})
        policy, controller = make_policy(settings), Fixed()
        transport = httpx.MockTransport(lambda request: answer(request, latency_s))
        with closing(RewardService(settings.rewards, transport=transport)) as service:
            train(settings, policy, service, controller)
        seconds = [record["seconds"] for record in read(settings.run_dir)]
    batches = [math.ceil(drawn / settings.screen.preview_batch_size) for drawn in controller.drawn]
    by_step = [batches[first : first + prompts] for first in range(0, len(batches), prompts)]
    return summary(seconds[1:], by_step[1:], latency_s)


def answer(request: httpx.Request, latency_s: float) -> httpx.Response:
    """Score each image by its checksum, a uniform random number in [0, 1), after `latency_s`."""
    asked = WIRE.decode_request(request.content)
    scores = [Score(zlib.crc32(item.pixels().tobytes()) / 2**32) for item in asked.items]
    results = [ItemResult(dict.fromkeys(asked.scorers, one), None if asked.ensemble is None else one) for one in scores]
    time.sleep(latency_s)
    content = WIRE.encode_response(ScoreResponse(tuple(results), asked.request_id or ""))
    return httpx.Response(200, content=content, headers={"content-type": WIRE.content_type})


def summary(
    seconds: Sequence[dict[str, float]], batches: Sequence[Sequence[int]], latency_s: float
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


def least_wait_s(batches: Sequence[int], seconds: dict[str, float], latency_s: float) -> float:
    """Return a lower bound of the seconds that a step waits whose groups take `batches`, without drawing in vain.

    The rewards of the last images take one latency. A group's batches follow one after another, each with its latency:
    what that exceeds the time of drawing all groups is waited for, whatever is done first.
    """
    drawing = sum(seconds.get(phase, 0.0) for phase in ("reason", "preview", "decode"))
    finishing = seconds.get("finish", 0.0)
    longest = max(batches)
    chain = longest * (drawing / sum(batches) + latency_s) + finishing / len(batches)
    return latency_s + max(0.0, chain - drawing - finishing)


if __name__ == "__main__":
    sys.exit(main())
