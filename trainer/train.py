"""The training loop: Sync-GRPO with Dynamic Group Scaling (Sync-R1, secs. 3.2 and 3.3), for any policy and any rewards.

Each step draws rollouts of a few prompts, screens them as `screen.select` says, finishes the images of those that are
kept, waits for their rewards, and updates the policy once. Left out of the paper: several updates per
rollout (with one, as in the authors' code, the ratio is always 1). docs/training.md lists every deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from tqdm import tqdm

from trainer.algorithms.threshold import ThresholdController
from trainer.data.source import training_tasks
from trainer.distributed import ONE_RANK, Ranks
from trainer.errors import NonFinite
from trainer.evaluate.during import HeldOut
from trainer.groups import ScoredGroup
from trainer.out_of_memory import explain_out_of_memory
from trainer.policy.base import Policy
from trainer.report.metrics import Metrics, show
from trainer.report.records import log_images, save_failed_groups, step_record
from trainer.rewards.base import RewardBackend
from trainer.rollout import draw_groups, replace_flat_groups
from trainer.settings import TrainerSettings
from trainer.state import TrainState
from trainer.stop import stop_on_signal
from trainer.types import Task
from trainer.update import policy_update


def train(
    settings: TrainerSettings,
    policy: Policy,
    service: RewardBackend,
    controller: ThresholdController,
    log: Callable[[str], None] = tqdm.write,
    held_out: HeldOut | None = None,
    ranks: Ranks = ONE_RANK,
) -> TrainState:
    """Train until `settings.steps` are done, or `held_out` ends the run early, and return the final state.

    Resumes from the last checkpoint. SIGTERM and Ctrl-C stop it after the current step. A KL term needs the policy's
    `keep_reference`. Raises RewardServiceUnavailable, CheckpointMismatch, CheckpointNotWritten, OutOfMemory, and
    NonFinite: the groups that caused it are saved first, and the policy is unchanged.
    """
    with ranks.together():
        source = training_tasks(settings, log)
    state = TrainState.new(policy, controller, settings, ranks)
    clock, checkpoints = ranks.clock, settings.run_dir / "checkpoints"
    if (last := state.resume(checkpoints, settings, ranks)) is not None:
        log(f"resuming from {last}: {state.step} of {settings.steps} steps are done")

    def save_checkpoint() -> None:
        with clock("checkpoint"):
            state.save(checkpoints, ranks)

    def draw(tasks: Sequence[Task], first: int) -> list[ScoredGroup]:
        """Return a group of each task; `first` is the number of the first one in the step."""
        return draw_groups(policy, service, tasks, state.key(settings), first, state.plan, settings, clock, ranks)

    saving = partial(ranks.saving, save_checkpoint)  # the finished steps; resuming repeats the others
    with (
        stop_on_signal(settings.run_dir) as stop,
        ExitStack() as held,
        tqdm(total=settings.steps, initial=state.step, desc="training", unit="step", disable=not ranks.is_first) as bar,
    ):
        with ranks.together():
            opened = Metrics(settings.run_dir, state.step, settings.report.wandb) if ranks.is_first else None
            metrics = opened and held.enter_context(opened)
        clock.lap()  # what was before the first step is not in its record
        while state.step < settings.steps and not ranks.any(stop.is_set()):
            step, others = state.step, source.replacements(state.step, settings.resample_flat_groups)
            with saving():
                if held_out is not None and held_out.ends_run(state, clock):
                    break
                groups, replaced = replace_flat_groups(draw(source.tasks(step), 0), others, draw)
            try:
                with saving(), clock("update"), explain_out_of_memory("the update", policy, settings):
                    slopes, sharding = state.reward_slopes, state.sharding
                    update = policy_update(policy, state.optimizer, groups, slopes, settings, step, ranks, sharding)
            except NonFinite as error:
                folder = save_failed_groups(settings.run_dir, step, groups, error, ranks.rank)
                raise error.with_saved_groups(step, folder) from error
            state.advance([*replaced, *groups])
            laps = ranks.gather_all(clock.lap())
            audit = state.audit([*replaced, *groups], len(replaced), settings, laps, log)
            with saving(), ranks.together("records"):
                if metrics is not None:
                    record = step_record(groups, len(replaced), update, settings, step, laps, audit)
                    metrics.log(step, record if held_out is None else {**record, "heldout": held_out.means(step)})
                    bar.set_postfix_str(f"reward {show(record['reward_mean'])}")
                log_images(metrics, settings.run_dir, step, groups)
            if state.step % settings.checkpoint_every == 0:
                save_checkpoint()
            bar.update()
        save_checkpoint()  # still inside `stop_on_signal`: a second SIGTERM must not interrupt the final save
    return state
