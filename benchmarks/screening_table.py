"""Measure how well scores of half-drawn images predict rewards, by denoising step, task and surrogate, with ceilings.

    make up && python -m benchmarks.screening_table --prompts 48

Of each held-out prompt (a third each of visual, textual and GenEval's) --rollouts images are drawn. At each of --steps
they are decoded and scored, and each is also finished --completions times with other random numbers: how much the
rewards of one state differ says how much the state decides (`trainer.algorithms.ceiling`). Correlations are those
within a prompt, averaged over prompts. Nothing is trained and nothing is screened.

Writes OUT, and a Markdown table next to it. Finished prompts are kept in --runs: the same command continues.

Time: about 30 s a prompt on two idle cores (64 px, 10 steps, 16 rollouts, 4 completions at five steps), 24 minutes for
48 prompts.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from tqdm import tqdm

from benchmarks.arguments import count, exit_with
from benchmarks.machine import command, commit, machine
from benchmarks.screening_rho import PART, REWARD, Measured, Plan, markdown, table
from benchmarks.timed import FACTS, facts_of, keep_facts
from synod.errors import SettingsError
from trainer.clock import Clock
from trainer.data.source import heldout_tasks, wanted_rewards
from trainer.images import write_whole
from trainer.policy.base import Policy
from trainer.policy.flow.segments import LatentSegment
from trainer.policy.show_o.segments import ImageSegment
from trainer.rewards.base import RewardBackend
from trainer.rewards.served import Wanted
from trainer.rewards.service import RewardService
from trainer.run import make_policy
from trainer.run_dir import run_lock
from trainer.sampling import reward_items
from trainer.scenarios import surrogate_item
from trainer.settings import SyncR1Settings, TrainerSettings, load
from trainer.turns import continue_images, start
from trainer.types import Reward, RewardSpec, Rollout, Segment, Task

ROOT: Final = Path(__file__).resolve().parents[1]
CONFIG: Final = ROOT / "deploy/configs/embedded.toml"
STEPS: Final = (1, 2, 3, 5, 7)
THIRD: Final = 0.333334  # a share is counted in millionths: of 3 prompts 1 is GenEval's, of 48 they are 16
Values = list[float | None]  # of each rollout


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the prompts that are not finished, and write the tables; exit status 0: all are."""
    options = _parser().parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    settings, plan = (
        _settings(options),
        Plan(options.rollouts, tuple(sorted({*options.steps})), options.completions, options.scorer),
    )
    _check(plan, settings.policy.image_steps)
    tasks = heldout_tasks(settings, options.seed, options.prompts)
    policy = make_policy(settings)
    facts = {**facts_of(settings, policy, ()), "plan": [plan.rollouts, list(plan.steps), plan.completions, plan.scorer]}
    with run_lock(options.runs), closing(RewardService(settings.rewards, log=tqdm.write)) as service:
        keep_facts(options.runs / FACTS, facts)
        service.wait_ready()
        inputs = frozenset({"image", "prompt"})
        service.check_served([*wanted_rewards(settings), Wanted(RewardSpec({plan.scorer: 1.0}), inputs, "surrogate")])
        found = list(measure_all(policy, service, tasks, plan, options.seed, options.runs, deadline))
    result = {"command": command(), "commit": commit(), "machine": machine(), "settings": facts, **table(found, plan)}
    write_whole(options.out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    text = markdown(result)
    write_whole(options.out.with_suffix(".md"), (text + "\n").encode())
    print(text)
    if len(found) < len(tasks):
        tqdm.write(f"stopped after {len(found)} of {len(tasks)} prompts; the same command continues")
    return 0 if len(found) == len(tasks) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.screening_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prompts", type=count, default=48, help="held-out prompts, a third of each kind (48)")
    parser.add_argument("--rollouts", type=count, default=16, help="images of a prompt (16)")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="denoising steps (1 2 3 5 7)")
    parser.add_argument("--completions", type=count, default=4, help="of each state, for the ceilings (4)")
    parser.add_argument("--scorer", default="ber", help="surrogate scorer, against the original prompt (ber)")
    parser.add_argument("--seed", type=int, default=1, help="of prompts and random numbers (1)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time")
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings TOML (%(default)s)")
    parser.add_argument("--url", help="the service (default: the settings')")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/screening", help="where finished prompts are kept")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/screening.json", help="the result (%(default)s)"
    )
    return parser


def _check(plan: Plan, total: int) -> None:
    outside = [step for step in plan.steps if not 0 < step < total]
    if outside:
        raise SettingsError(f"--steps {outside[0]}: an image has {total} denoising steps; give 1 to {total - 1}")
    if min(plan.rollouts, plan.completions) < 2:
        raise SettingsError(
            f"--rollouts {plan.rollouts} and --completions {plan.completions}: a spread needs two; give at least 2"
        )


def _settings(options: argparse.Namespace) -> TrainerSettings:
    settings = load(options.config)
    rewards = settings.rewards.model_copy(update={"url": options.url} if options.url else {})
    data, evaluate = settings.data, settings.evaluate.model_copy(update={"prompts": options.prompts})
    if isinstance(data, SyncR1Settings):
        data = data.model_copy(update={"geneval_share": THIRD})
    return settings.model_copy(update={"rewards": rewards, "data": data, "evaluate": evaluate})


# -- measuring -------------------------------------------------------------------------------------------------------


def measure_all(
    policy: Policy,
    service: RewardBackend,
    tasks: Sequence[Task],
    plan: Plan,
    seed: int,
    folder: Path,
    deadline: float = math.inf,
) -> Iterator[Measured]:
    """Yield the measurements of each task until the deadline; those in `folder` are read, new ones written there."""
    for place, task in enumerate(tqdm(tasks, unit="prompt")):
        path = folder / f"prompt-{place:04d}.json"
        if not path.exists():
            if time.monotonic() >= deadline:
                return
            with torch.no_grad():
                found = measure(policy, service, task, plan, (seed, place))
            write_whole(path, json.dumps(found, allow_nan=False).encode())
        yield json.loads(path.read_text())


def measure(policy: Policy, service: RewardBackend, task: Task, plan: Plan, key: Sequence[int]) -> Measured:
    """Return scores of previews, rewards of their own ends, and rewards of the completions [C R] of each step."""
    seeds = [(*key, index) for index in range(plan.rollouts)]
    states, at = start(policy, [task] * plan.rollouts, seeds, Clock()), list[list[Rollout]]()
    for step in plan.steps:
        states = continue_images(policy, states, step)
        at.append(states)
    own = _scored(policy, service, task, continue_images(policy, states, policy.image_steps), plan)
    steps: dict[str, Measured] = {}
    for step, previews in zip(plan.steps, at, strict=True):
        others = [
            _rewarded(policy, service, task, _finished(policy, previews, (*key, step, number)))
            for number in range(1, plan.completions)
        ]
        completions = {name: [own[name], *(values[name] for values in others)] for name in (REWARD, PART)}
        steps[str(step)] = {"preview": _scored(policy, service, task, previews, plan), "completions": completions}
    return {"task": task.pathway, "tag": task.prompt.tag, "prompt": task.prompt.text, "final": own, "steps": steps}


def _finished(policy: Policy, rollouts: Sequence[Rollout], key: Sequence[int]) -> list[Rollout]:
    """Return the rollouts with the rest of their images drawn with other random numbers."""
    images = [rollout.image for rollout in rollouts]
    fresh = policy.start([image.prompt for image in images], [(*key, rollout.index) for rollout in rollouts])
    redrawn = []
    for rollout, image, other in zip(rollouts, images, fresh, strict=True):
        redrawn.append(rollout.with_image(with_noise_of(image, other)))
    return continue_images(policy, redrawn, policy.image_steps)


def with_noise_of(image: Segment, other: Segment) -> Segment:
    """Return an image at any step whose steps ahead will have the random numbers of another one."""
    if isinstance(image, ImageSegment):
        assert isinstance(other, ImageSegment)
        return replace(image, uniform_T2N=other.uniform_T2N)
    assert isinstance(image, LatentSegment)
    assert isinstance(other, LatentSegment)
    return replace(image, noise_RCHW=other.noise_RCHW[len(other.noise_RCHW) - len(image.noise_RCHW) :])


def _scored(
    policy: Policy, service: RewardBackend, task: Task, rollouts: Sequence[Rollout], plan: Plan
) -> dict[str, Values]:
    """Return, for images at any step, their rewards by part, and their scores by the surrogate scorer."""
    images = policy.images([rollout.image for rollout in rollouts])
    items = [surrogate_item(task, image) for image in images]
    surrogate = service.submit(items, RewardSpec({plan.scorer: 1.0}))
    rewards = service.submit(reward_items(task, rollouts, images), task.reward).result()
    return {**_parts(rewards), "surrogate": [reward.value for reward in surrogate.result()]}


def _rewarded(policy: Policy, service: RewardBackend, task: Task, rollouts: Sequence[Rollout]) -> dict[str, Values]:
    images = policy.images([rollout.image for rollout in rollouts])
    return _parts(service.submit(reward_items(task, rollouts, images), task.reward).result())


def _parts(rewards: Sequence[Reward]) -> dict[str, Values]:
    return {
        REWARD: [reward.value for reward in rewards],
        PART: [reward.image_part for reward in rewards],
        "known": [math.fsum(reward.fixed.values()) if reward.fixed else None for reward in rewards],
        "der": [reward.components.get("der") for reward in rewards],
    }


if __name__ == "__main__":
    exit_with(main)
