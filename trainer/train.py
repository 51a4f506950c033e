"""THE LOOP: Sync-GRPO with Dynamic Group Scaling (Sync-R1, secs. 3.2 and 3.3), on one page.

A step draws previews for each prompt, screens them by a surrogate score, finishes those that pass, waits for the
rewards of the finished images, and updates the policy once. Two parts of the paper are left out: several updates per
rollout (with one update every ratio is 1, as in the authors' code) and several devices. docs/training.md lists every
deviation with its reason.
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
from trainer.optim import make_optimizer, policy_update, update_slope
from trainer.policy.base import Policy
from trainer.records import log_images, save_failed_groups, step_record
from trainer.rollout import Group, Rewards, finish, sample_previews
from trainer.settings import TrainerSettings
from trainer.state import TrainState, update_threshold
from trainer.stop import stop_on_signal


def train(
    settings: TrainerSettings,
    policy: Policy,
    reference: Policy | None,
    service: Rewards,
    controller: ThresholdController,
    log: Callable[[str], None] = tqdm.write,
) -> TrainState:
    """Train until `settings.steps` are done, and return the final state.

    Resumes from the run's last checkpoint. SIGTERM and Ctrl-C stop it after the current step. `reference` is the
    frozen policy of the KL term; it may be None when `loss.beta` is 0. Raises RewardServiceUnavailable,
    CheckpointMismatch, CheckpointNotWritten, and NonFinite (the groups are saved, the policy unchanged).
    """
    concepts = read_concepts(settings.data.concepts)
    prompts = read_prompts(settings.data.prompts, concepts)
    source = Source(prompts, concepts, settings.seed, settings.prompts_per_step, settings.data.geneval_share)
    state = TrainState(policy, make_optimizer(policy, settings.optimizer))
    checkpoints = settings.run_dir / "checkpoints"
    if (last := checkpoint.latest(checkpoints)) is not None:
        state.restore(*checkpoint.load(last, settings))
        log(f"resuming from {last}: {state.step} of {settings.steps} steps are done")

    def save_checkpoint() -> None:
        if state.step:
            checkpoint.save(checkpoints, state.step, state.to_save(), settings)

    clock = Clock()
    with (
        stop_on_signal() as stop,
        Metrics(settings.run_dir, resume_at=state.step) as metrics,
        tqdm(total=settings.steps, initial=state.step, desc="training", unit="step") as bar,
    ):
        while state.step < settings.steps and not stop.is_set():
            step, thresholds = state.step, dict(state.thresholds)
            groups: list[Group] = []
            try:
                for index, task in enumerate(source.tasks(step)):
                    previous = thresholds.get(task.key, controller.initial_state())
                    key = (settings.seed, step, index)  # of the group's random numbers
                    previews = sample_previews(policy, service, task, previous.threshold, settings, key, clock)
                    groups.append(finish(policy, service, previews, settings, clock))
                    thresholds[task.key] = update_threshold(controller, previous, previews)
                with clock("reward_wait"):
                    rewards = [group.rewards() for group in groups]
            except RewardServiceUnavailable:  # save the finished steps; the current one is drawn again on resuming
                save_checkpoint()
                raise
            try:
                with clock("update"):
                    update = policy_update(
                        policy, reference, state.optimizer, groups, rewards, state.slope, settings, step
                    )
            except NonFinite as error:
                raise save_failed_groups(settings.run_dir, step, groups, rewards, error) from error
            state.slope = update_slope(state.slope, groups, rewards)
            state.thresholds = thresholds
            state.step += 1
            record = step_record(groups, rewards, update, settings, step, clock.lap())
            metrics.log(step, record)
            log_images(metrics, step, groups, rewards)
            if state.step % settings.checkpoint_every == 0:
                with clock("checkpoint"):
                    save_checkpoint()
            reward = record["reward_mean"]
            bar.set_postfix_str("no reward" if reward is None else f"reward {reward:.3f}")
            bar.update()
        save_checkpoint()  # inside `with`: a second signal must not end the program before the last step is saved
    return state
