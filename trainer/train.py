"""The training loop: Sync-GRPO with Dynamic Group Scaling (Sync-R1, secs. 3.2 and 3.3), for any policy and any rewards.

Each step samples previews for a few prompts, filters them with a surrogate score, finishes denoising those that pass,
waits for the rewards of the finished images, and updates the policy once. Two parts of the paper are left out: multiple
updates per rollout (with a single update, as in the authors' code, the importance ratio is always 1) and training on
multiple devices. docs/training.md lists every deviation with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

from tqdm import tqdm

from trainer import checkpoint
from trainer.algorithms.threshold import ThresholdController
from trainer.clock import Clock
from trainer.data.source import training_tasks
from trainer.distributed import ONE_RANK, Ranks
from trainer.errors import NonFinite, OtherRankFailed, RewardServiceUnavailable
from trainer.out_of_memory import explain_out_of_memory
from trainer.policy.base import Policy
from trainer.report.metrics import Metrics
from trainer.report.records import log_images, save_failed_groups, step_record
from trainer.rewards.base import RewardBackend
from trainer.rollout import ScoredGroup, exchange, finish, replace_flat_groups, sample_previews
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
    ranks: Ranks = ONE_RANK,
) -> TrainState:
    """Train until `settings.steps` are done, and return the final state.

    Resumes from the run's last checkpoint. SIGTERM and Ctrl-C stop it after the current step. A KL term needs the
    policy's reference (`Policy.keep_reference`). Raises RewardServiceUnavailable, CheckpointMismatch,
    CheckpointNotWritten, and OutOfMemory. Raises NonFinite if an update is not finite; the groups that caused it are
    saved first, and the policy is unchanged.
    """
    source = training_tasks(settings, log)
    state = TrainState.new(policy, controller, settings)
    checkpoints = settings.run_dir / "checkpoints"
    if (last := checkpoint.latest(checkpoints)) is not None:
        state.restore(*checkpoint.load(last, settings))
        log(f"resuming from {last}: {state.step} of {settings.steps} steps are done")
    ranks.check_equal(state.step, "step of the newest checkpoint; run_dir must be the same directory on every machine")

    def save_checkpoint() -> None:
        with ranks.together():
            if state.step and ranks.is_first:
                checkpoint.save(checkpoints, state.step, state.to_save(), settings)

    clock, wandb = Clock(), settings.report.wandb

    def draw(tasks: Sequence[Task], first: int) -> list[ScoredGroup]:
        """Return a group of each task, our share drawn here; `first` is the number of the first one in the step."""
        pending = []
        with ranks.together():
            with explain_out_of_memory("drawing", policy, settings):
                for place in ranks.mine(len(tasks)):
                    task, key = tasks[place], (settings.seed, state.step, first + place)
                    previews = sample_previews(policy, service, task, state.threshold(task), settings, key, clock)
                    pending.append(finish(policy, service, previews, settings, clock))
            with clock("reward_wait"):
                own = [group.wait() for group in pending]
        return exchange(ranks, tasks, own)

    with (
        stop_on_signal() as stop,
        Metrics(settings.run_dir, resume_at=state.step, wandb=wandb) if ranks.is_first else nullcontext() as metrics,
        tqdm(total=settings.steps, initial=state.step, desc="training", unit="step", disable=not ranks.is_first) as bar,
    ):
        while state.step < settings.steps and not ranks.any(stop.is_set()):
            step, others = state.step, source.replacements(state.step, settings.resample_flat_groups)
            try:
                groups, replaced = replace_flat_groups(draw(source.tasks(step), 0), others, draw)
            except (RewardServiceUnavailable, OtherRankFailed):  # save the finished steps; resuming repeats this one
                save_checkpoint()
                raise
            try:
                with clock("update"), explain_out_of_memory("the update", policy, settings):
                    update = policy_update(policy, state.optimizer, groups, state.reward_slope, settings, step, ranks)
            except NonFinite as error:
                folder = save_failed_groups(settings.run_dir, step, groups, error)
                raise error.with_saved_groups(step, folder) from error
            state.advance([*replaced, *groups])
            record = step_record(groups, len(replaced), update, settings, step, clock.lap())
            if metrics is not None:
                metrics.log(step, record)
                log_images(metrics, step, groups)
            if state.step % settings.checkpoint_every == 0:
                with clock("checkpoint"):
                    save_checkpoint()
            reward = record["reward_mean"]
            bar.set_postfix_str("no reward" if reward is None else f"reward {reward:.3f}")
            bar.update()
        save_checkpoint()  # still inside `stop_on_signal`: a second SIGTERM must not interrupt the final save
    return state
