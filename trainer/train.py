"""THE LOOP: Sync-GRPO with Dynamic Group Scaling (Sync-R1, secs. 3.2 and 3.3), top to bottom.

Left out of the paper: several updates a rollout (ratios are 1 at the update, as in the authors' public code), and more
than one device. Left out of that code: its judge model. What is computed otherwise, and why, is in docs/training.md.
"""

from __future__ import annotations

from collections.abc import Callable

from tqdm import tqdm

from trainer import checkpoint
from trainer.clock import Clock
from trainer.data import Source, read_concepts, read_prompts
from trainer.errors import NonFinite, RewardServiceUnavailable
from trainer.grpo.threshold import ThresholdController
from trainer.metrics import Metrics
from trainer.optim import make_optimizer, policy_update, slope_after
from trainer.policy.base import Policy
from trainer.records import keep_failure, log_images, step_record
from trainer.rollout import Rewards, finish, sample_previews
from trainer.settings import TrainerSettings
from trainer.state import TrainState, update_threshold
from trainer.stop import stop_on_signal


def train(
    settings: TrainerSettings,
    policy: Policy,
    reference: Policy | None,
    service: Rewards,
    controller: ThresholdController,
    say: Callable[[str], None] = tqdm.write,
) -> TrainState:
    """Train until `settings.steps`, or until SIGTERM or Ctrl-C, which end after the step at hand.

    Goes on from the run's last checkpoint. `reference` may be None when `loss.beta` is 0. Raises
    RewardServiceUnavailable,
    CheckpointMismatch, CheckpointNotWritten, NonFinite (the offending group is saved, nothing was updated).
    """
    concepts = read_concepts(settings.data.concepts)
    prompts = read_prompts(settings.data.prompts, concepts)
    source = Source(prompts, concepts, settings.seed, settings.prompts_per_step, settings.data.geneval_share)
    state = TrainState(policy, make_optimizer(policy, settings.optimizer))
    checkpoints = settings.run_dir / "checkpoints"
    if (last := checkpoint.latest(checkpoints)) is not None:
        state.restore(*checkpoint.load(last, settings))
        say(f"going on from {last}: {state.step} of {settings.steps} steps are done")

    def keep(state: TrainState) -> None:
        if state.step:
            checkpoint.save(checkpoints, state.step, state.to_save(), settings)

    clock = Clock()
    with (
        stop_on_signal() as stop,
        Metrics(settings.run_dir, resume_at=state.step) as metrics,
        tqdm(total=settings.steps, initial=state.step, desc="training", unit="step") as bar,
    ):
        while state.step < settings.steps and not stop.is_set():
            step, groups, thresholds = state.step, [], dict(state.thresholds)
            try:
                for index, task in enumerate(source.tasks(step)):
                    tracker, key = thresholds.get(task.key, controller.initial_state()), (settings.seed, step, index)
                    found = sample_previews(policy, service, task, tracker.threshold, settings, key, clock)
                    groups.append(finish(policy, service, found, settings, clock))
                    thresholds[task.key] = update_threshold(controller, tracker, found)
                with clock("reward_wait"):
                    rewards = [group.rewards() for group in groups]
            except RewardServiceUnavailable:  # what was learned stays; the step at hand is drawn again
                keep(state)
                raise
            try:
                with clock("update"):
                    update = policy_update(
                        policy, reference, state.optimizer, groups, rewards, state.slope, settings, step
                    )
            except NonFinite as error:
                raise keep_failure(settings.run_dir, step, groups, rewards, error) from error
            state.slope, state.thresholds = slope_after(state.slope, groups, rewards), thresholds
            state.step += 1
            record = step_record(groups, rewards, update, settings, step, clock.lap())
            metrics.log(step, record)
            log_images(metrics, step, groups, rewards)
            if state.step % settings.checkpoint_every == 0:
                with clock("checkpoint"):
                    keep(state)
            reward = record["reward_mean"]
            bar.set_postfix_str("no reward" if reward is None else f"reward {reward:.3f}")
            bar.update()
        keep(state)  # here, so that a signal at any moment finds the last step kept
    return state
