"""Helpers to run parts of the training loop."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from trainer.algorithms.advantage import Slope
from trainer.algorithms.costs import Costs, Work
from trainer.algorithms.threshold import ThresholdController, make_controller
from trainer.clock import Clock
from trainer.credit import Slopes
from trainer.data.source import training_tasks
from trainer.groups import Previews, ScoredGroup
from trainer.policy.base import Policy
from trainer.policy.show_o.policy import ShowO
from trainer.rewards.base import RewardBackend
from trainer.sampling import Sampling, finish, sample_previews
from trainer.screen_audit import update_costs, work_of
from trainer.screen_plan import fixed_plan
from trainer.settings import TrainerSettings
from trainer.state import TrainState
from trainer.train import train
from trainer.types import MODALITIES, Modality, Pathway, Reward, Task

MakePolicy = Callable[..., ShowO]
MakeSettings = Callable[..., TrainerSettings]
NO_SCREEN = "none"
NO_SLOPES: Slopes = {}
AUTO = {  # groups of two; what TINY sets for another rule is set back
    "REWARDS__SURROGATE": "known+predicted",
    "SCREEN__SELECT": "auto",
    "SCREEN__GROUP_SIZE": "2",
    "SCREEN__MAX_PREVIEWS": "144",
    "SCREEN__SCREEN_FRACTION": "0.2",
    "SCREEN__TARGET_PASS_RATE": "0.25",
}
UPDATES_ARE_DEAR = Work(0.1, 0.1, 0.1, 0.1, 0.1, 9.0)
LEARNING = {  # fifteen updates of eight images each, without a screen and a KL
    "STEPS": "15",
    "DATA__GENEVAL_SHARE": "1.0",
    "SCREEN__THRESHOLD": NO_SCREEN,
    "SCREEN__GROUP_SIZE": "8",
    "SCREEN__PREVIEW_BATCH_SIZE": "8",
    "REWARD_BATCH_SIZE": "8",
    "LOSS__TEXT__BETA": "0",
    "LOSS__IMAGE__BETA": "0",
    "CHECKPOINT_EVERY": "100",
}


def every_slope(slopes: Mapping[Modality, Slope]) -> Slopes:
    """The slopes of each modality, on every pathway and at every step."""
    pathways: tuple[Pathway, ...] = ("visual", "textual", "none")
    return {
        (modality, pathway, step): slopes[modality]
        for modality in MODALITIES
        for pathway in pathways
        for step in range(5)
    }


def tasks(settings: TrainerSettings, step: int = 0) -> list[Task]:
    """The tasks of one training step."""
    return training_tasks(settings).tasks(step)


def previews_of(sampling: Sampling) -> Previews:
    """The previews of one sampling, which waits for each of its scores."""
    while True:
        try:
            next(sampling)
        except StopIteration as end:
            return cast(Previews, end.value)


def draw(
    policy: Policy, service: RewardBackend, settings: TrainerSettings, threshold: float | None = None
) -> tuple[list[ScoredGroup], list[tuple[Reward, ...]]]:
    """The groups of step 0 and their rewards."""
    clock = Clock()
    groups = []
    for i, task in enumerate(tasks(settings)):
        sampling = sample_previews(
            policy, service, task, fixed_plan(task, settings, threshold), settings, (settings.seed, 0, i), clock
        )
        groups.append(finish(policy, service, previews_of(sampling), settings, clock))
    scored = [group.wait() for group in groups]
    return scored, [group.rewards for group in scored]


def reference(make_policy: MakePolicy) -> ShowO:
    frozen = make_policy()
    frozen.module.requires_grad_(False)
    return frozen


def run_loop(
    settings: TrainerSettings,
    make_policy: MakePolicy,
    service: RewardBackend,
    policy: ShowO | None = None,
    controller: ThresholdController | None = None,
    log: Callable[[str], None] = lambda message: None,
) -> TrainState:
    """Run `train` with a new policy, as one process does."""
    policy = policy or make_policy()
    policy.keep_reference()
    controller = controller or make_controller(settings.screen.threshold, settings.screen.target_pass_rate)
    return train(settings, policy, service, controller, log)


def priced(prices: Work) -> Callable[..., Costs]:
    """Return `update_costs` with these seconds for each part of the work in place of the measured ones."""

    def update(costs: Costs, groups: Any, replaced: int, laps: Any, settings: TrainerSettings) -> Costs:
        done = [work_of(group, settings, in_update=place >= replaced) for place, group in enumerate(groups)]
        seconds = Work(*map(operator.mul, astuple(sum(done, Work())), astuple(prices)))
        phases = ("reason", "preview", "decode", "surrogate", "reward_wait", "update")
        return update_costs(costs, groups, replaced, [dict(zip(phases, astuple(seconds), strict=True))], settings)

    return update


def lines(run: Path, *without: str) -> list[dict[str, Any]]:
    """metrics.jsonl without timings, what depends on them, memory, and the keys `without`."""
    left_out = {"seconds", "ranks", "max_rss_gib", "dropped", "signal_per_second", *without}
    text = (run / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k not in left_out} for line in text.splitlines()]


def weights(policy: ShowO) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in policy.module.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Compare bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def same_images(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
