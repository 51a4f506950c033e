"""`synod train --dry-run`: load everything, draw one group, compute one update, and print what that took."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Mapping, Sequence
from contextlib import closing

import torch
from tqdm import tqdm

from synod.errors import SettingsError
from trainer.algorithms.threshold import make_controller
from trainer.clock import Clock
from trainer.data.source import training_tasks, wanted_rewards
from trainer.distributed import ONE_RANK
from trainer.groups import ScoredGroup
from trainer.memory import GIB
from trainer.out_of_memory import configuration_of, explain_out_of_memory, memory_of
from trainer.policy.base import Policy
from trainer.processes import processes
from trainer.rewards.base import RewardBackend
from trainer.rewards.intrinsic import with_intrinsic
from trainer.rewards.service import RewardService
from trainer.rollout import draw_groups
from trainer.run import make_policy
from trainer.settings import TrainerSettings
from trainer.state import TrainState
from trainer.update import policy_update


def dry_run(settings: TrainerSettings) -> int:
    """Print the time and the peak memory of each phase of one group, and its rewards; return the exit status 0.

    The update is computed in memory alone: no run directory is made and nothing is saved. Raises what a run raises, and
    SettingsError under a launcher of several processes.
    """
    if (world := processes(os.environ)) > 1:
        raise SettingsError(
            f"--dry-run measures one process, but a launcher has started {world} (WORLD_SIZE); run it without torchrun"
        )
    clock, peaks, wanted = Clock(), dict[str, float](), wanted_rewards(settings)
    with clock("load"):
        policy = make_policy(settings)
    peaks["load"] = peak_gib()
    with closing(RewardService(settings.rewards, log=tqdm.write)) as service:
        if wanted:
            service.wait_ready()
            service.check_served(wanted)
        group = _one_group(settings, policy, with_intrinsic(service, policy, settings, clock), clock, peaks)
    print(report(settings, policy, group, clock.lap(), peaks))
    return 0


def _one_group(
    settings: TrainerSettings, policy: Policy, service: RewardBackend, clock: Clock, peaks: dict[str, float]
) -> ScoredGroup:
    controller = make_controller(settings.screen.threshold, settings.screen.target_pass_rate)
    state = TrainState.new(policy, controller, settings)
    task = training_tasks(settings, tqdm.write).tasks(0)[0]
    (group,) = draw_groups(policy, service, [task], (settings.seed, 0), 0, state.plan, settings, clock, ONE_RANK)
    peaks["draw"] = peak_gib()
    with clock("update"), explain_out_of_memory("the update", policy, settings):
        policy_update(policy, state.optimizer, [group], state.reward_slopes, settings, 0)
    peaks["update"] = peak_gib()
    return group


def report(
    settings: TrainerSettings,
    policy: Policy,
    group: ScoredGroup,
    seconds: Mapping[str, float],
    peaks: Mapping[str, float],
) -> str:
    """Return the table of a dry run: seconds of each phase, peak memory in GiB so far, and the group's rewards."""
    trained = sum(p.numel() for p in policy.module.parameters() if p.requires_grad)
    total = sum(p.numel() for p in policy.module.parameters())
    estimate = memory_of(policy, settings, configuration_of(settings))
    step_s = settings.prompts_per_step * sum(s for phase, s in seconds.items() if phase not in ("load", "total"))
    lines = [
        f"policy: {total / 1e6:,.1f} M parameters, {trained / 1e6:,.1f} M trained",
        f"group: {len(group.rollouts)} of {group.previews.screened.drawn} rollouts, prompt "
        f"{group.previews.task.prompt.text!r}",
        *_reward_lines(group),
        "",
        f"{'phase':<14}{'seconds':>10}",
        *(f"{phase:<14}{spent:>10.2f}" for phase, spent in seconds.items() if phase != "total"),
        "",
        f"peak memory ({'GPU' if torch.cuda.is_available() else 'resident'}): "
        + ", ".join(f"{peak:.2f} GiB after {phase}" for phase, peak in peaks.items()),
        f"arithmetic of an update: {estimate.total / GIB:.3g} GiB ({estimate})",
        *_shard_lines(settings, policy),
        f"estimate: {step_s:.1f} s a step, {settings.steps * step_s / 3600:.1f} h for {settings.steps} steps "
        "without evaluation, on one device",
        *_auto_lines(settings),
        *_ranks_lines(settings, step_s),
    ]
    return "\n".join(lines)


def _auto_lines(settings: TrainerSettings) -> Sequence[str]:
    screen = settings.screen
    if screen.select != "auto":
        return []
    return [
        f'as if all groups were drawn as this one; select "auto" finishes {screen.images} images in the first '
        f"groups and in {screen.audit:.0%} of the others, and screens the rest where that pays, or not at all"
    ]


def _ranks_lines(settings: TrainerSettings, step_s: float) -> Sequence[str]:
    groups, ranks = settings.prompts_per_step, settings.ranks.workers
    if ranks < 2:
        return [f"on N devices it is divided by N at best, and N is at most the {groups} groups of a step"]
    most = math.ceil(groups / ranks)
    return [
        f"on {ranks} ranks, each with {most} of the {groups} groups of a step at most: {most * step_s / groups:.1f} s "
        "a step at best, without waiting for the slowest and messages"
    ]


def _shard_lines(settings: TrainerSettings, policy: Policy) -> Sequence[str]:
    if settings.ranks.shard == 1:
        return []
    weights = sum(p.nbytes for p in policy.module.parameters()) / GIB
    return [
        f"this is on each of {settings.ranks.shard} ranks that share one copy of the policy; while it draws, its "
        f"weights are whole ({weights:.3g} GiB more). The measured peak is that of this process, which split nothing"
    ]


def peak_gib() -> float:
    """Return the peak memory of this process so far in GiB: that of its GPU if it has one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _reward_lines(group: ScoredGroup) -> Sequence[str]:
    names = sorted({name for reward in group.rewards for name in reward.components})
    columns = {"reward": [r.value for r in group.rewards]}
    columns |= {name: [r.components.get(name) for r in group.rewards] for name in names}
    return [
        f"{name}: " + " ".join("missing" if value is None else f"{value:.3f}" for value in values)
        for name, values in columns.items()
    ]
