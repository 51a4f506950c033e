"""Measure the signal-to-noise ratio of a policy's gradient, by modality and by family of parameters.

    make up && python -m benchmarks.gradient_snr deploy/configs/embedded.toml --groups 32
    SYNOD__TRAINER__LOSS__CREDIT=total python -m benchmarks.gradient_snr ...      # any setting, to compare

Draws groups of the training's prompts from the policy that the settings name, has them rewarded by the running service,
and computes the loss's gradient of each group; nothing is trained. No preview is screened: groups are plain, of
`group_size` rollouts, unless [trainer.screen] names `select` "extremes" or "auto", whose gradients are those of the
rollouts furthest from the mean of all finished ones.

Prints JSON: for each modality and family of parameters (and "all") |E g|^2 of one group's gradient g, tr Cov(g), their
ratio, and the cosine between halves of the groups, each with a jackknife error. A ratio r of one group means that N
groups have N r; at r = .003, 32 groups agree with a cosine of about .05. Fewer than four groups have no error.

Time: .44 s a rollout on two idle cores at 64 px (benchmarks/results/train_step_baseline.json), so 32 groups take
2 to 3 minutes; --minutes ends earlier. Memory: two gradients of every group, in float32 (0.8 GB for 32 groups of the
embedded policy).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.arguments import exit_with
from benchmarks.machine import command, machine
from trainer.algorithms.gradient_noise import gradient_noise
from trainer.clock import Clock
from trainer.credit import is_usable, modality_advantages
from trainer.data.source import training_tasks, wanted_rewards
from trainer.distributed import ONE_RANK
from trainer.groups import ScoredGroup
from trainer.passes import accumulate, passes_of
from trainer.policy.base import Policy
from trainer.rewards.base import RewardBackend
from trainer.rewards.intrinsic import with_intrinsic
from trainer.rewards.service import RewardService
from trainer.rollout import draw_groups
from trainer.run import make_policy
from trainer.screen_plan import ScreenPlan
from trainer.settings import TrainerSettings, load
from trainer.types import MODALITIES, Modality, Task

ROOT = Path(__file__).resolve().parents[1]
FAMILIES: Final = {  # by what the names of their parameters contain, the first that fits
    "final norm's bias": ("final_layernorm.bias",),
    "final norm's gain": ("final_layernorm.weight",),
    "norms": ("norm",),
    "attention": ("q_proj", "k_proj", "v_proj", "self_attn"),
    "mlp": ("mlp", "fc1", "fc2"),
    "head": ("lm_head",),
    "embeddings": ("embed",),
}
Gradients = Mapping[str, Tensor]  # of one group and modality: flat, by family


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gradient_snr",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, nargs="?", default=ROOT / "deploy/configs/embedded.toml", help="settings")
    parser.add_argument("--groups", type=int, default=32, help="groups to draw, four or more (32)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop drawing groups after this time")
    parser.add_argument("--url", help="the service (default: the settings')")
    parser.add_argument("--out", type=Path, help="write the result here, too")
    options = parser.parse_args(arguments)
    environ = {**os.environ, "SYNOD__TRAINER__SCREEN__THRESHOLD": "none"}
    if options.url:
        environ["SYNOD__TRAINER__REWARDS__URL"] = options.url
    settings = load(options.config, environ)
    policy = make_policy(settings)
    with closing(RewardService(settings.rewards, log=tqdm.write)) as service:
        if wanted := wanted_rewards(settings):
            service.wait_ready()
            service.check_served(wanted)
        rewards = with_intrinsic(service, policy, settings, Clock())
        found = measure(policy, rewards, settings, options.groups, options.minutes)
    result = {"command": command(), "machine": machine(), "settings": _shown(settings), **found}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(
    policy: Policy, service: RewardBackend, settings: TrainerSettings, groups: int, minutes: float = math.inf
) -> dict[str, Any]:
    """Return {modality: {family: GradientNoise as a dict}} of the gradients of `groups` groups.

    Fewer are drawn if the time is over before; a modality with a gradient in fewer than four groups is left out.
    """
    began = time.monotonic()
    gradients: dict[Modality, list[Gradients]] = {modality: [] for modality in MODALITIES}
    for number, group in enumerate(tqdm(_drawn(policy, service, settings, groups), total=groups, unit="group")):
        for modality, one in _gradients(policy, group, settings, number).items():
            gradients[modality].append(one)
        if time.monotonic() - began > 60 * minutes:
            break
    return {
        modality: {name: asdict(gradient_noise(_gram([one[name] for one in found]))) for name in found[0]}
        for modality, found in gradients.items()
        if len(found) >= 4
    }


def family(name: str) -> str:
    """Return the family of a parameter."""
    return next((kind for kind, parts in FAMILIES.items() if any(part in name for part in parts)), "other")


def _drawn(policy: Policy, service: RewardBackend, settings: TrainerSettings, count: int) -> Iterator[ScoredGroup]:
    """Yield `count` groups with enough rewards, of the training's tasks in order."""
    source, found, step = training_tasks(settings, tqdm.write), 0, 0

    def unscreened(task: Task, settings: TrainerSettings, key: Sequence[int]) -> ScreenPlan:
        return ScreenPlan(settings.screen.images, settings.screen.images)

    while found < count:
        for place, task in enumerate(source.tasks(step)):
            key = (settings.seed, step)
            (group,) = draw_groups(policy, service, [task], key, place, unscreened, settings, Clock(), ONE_RANK)
            if found < count and is_usable(group, settings.loss):
                found += 1
                yield group
        step += 1


def _gradients(
    policy: Policy, group: ScoredGroup, settings: TrainerSettings, step: int
) -> dict[Modality, dict[str, Tensor]]:
    """Return the gradient of each modality that the group has."""
    credits = modality_advantages([group], {}, settings.loss, settings.screen)
    usable = {modality: {0: one} for modality, (one,) in credits.items()}
    passes = passes_of(policy, [group], [0], usable, settings, step)
    found = {}
    for key, mine in passes.items():
        if mine:
            policy.module.zero_grad(set_to_none=True)
            accumulate(policy, [group], {key: mine}, settings.loss, ONE_RANK)
            found[key[1]] = _by_family(policy.module)
    policy.module.zero_grad(set_to_none=True)
    return found


def _by_family(module: nn.Module) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parts.setdefault(family(name), []).append(grad.flatten().float().cpu())
    found = {name: torch.cat(own) for name, own in parts.items()}
    return {**found, "all": torch.cat(list(found.values()))}


def _gram(gradients: Sequence[Tensor]) -> Tensor:
    """Return the products [N N] of all pairs, each summed in float64 over parts of a million numbers."""
    total = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for first in range(0, len(gradients[0]), 2**20):
        block = torch.stack([one[first : first + 2**20] for one in gradients]).double()
        total += block @ block.T
    return total


def _shown(settings: TrainerSettings) -> dict[str, Any]:
    """Return the settings that change a gradient."""
    whole = settings.model_dump(mode="json")
    return {name: whole[name] for name in ("policy", "rewards", "screen", "loss")}


if __name__ == "__main__":
    exit_with(main)
