"""THE LOOP: Sync-GRPO with Dynamic Group Scaling (Sync-R1, secs. 3.2 and 3.3), top to bottom.

Left out of the paper: several updates a rollout (ratios are 1 at the update, as in the authors' public code), and more
than one device. Left out of that code: its judge model. What is computed otherwise, and why, is in docs/training.md.
"""

from __future__ import annotations

from collections.abc import Callable

from tqdm import tqdm

from trainer import checkpoint
from trainer.clock import Clock
from trainer.data import Source, read_cards, read_prompts
from trainer.errors import NonFinite, RewardServiceUnavailable
from trainer.grpo.threshold import Law
from trainer.metrics import Metrics
from trainer.optim import learn, make_optimizer, slope_after
from trainer.policy.base import Policy
from trainer.records import keep_failure, keep_images, step_record
from trainer.rollout import Rewards, explore, finish
from trainer.settings import TrainerSettings
from trainer.state import TrainState, moved
from trainer.stop import told_to_stop


def train(
    settings: TrainerSettings,
    policy: Policy,
    reference: Policy | None,
    service: Rewards,
    law: Law,
    say: Callable[[str], None] = tqdm.write,
) -> TrainState:
    """Train until `settings.steps`, or until SIGTERM or Ctrl-C, which end after the step at hand.

    Goes on from the run's last checkpoint. `reference` may be None when `loss.beta` is 0. Raises
    RewardServiceUnavailable,
    CheckpointMismatch, CheckpointNotWritten, NonFinite (the offending group is saved, nothing was updated).
    """
    cards = read_cards(settings.data.concepts)
    prompts = read_prompts(settings.data.prompts, cards)
    source = Source(prompts, cards, settings.seed, settings.groups, settings.data.geneval_share)
    state = TrainState(policy, make_optimizer(policy, settings.optimizer))
    checkpoints = settings.run / "checkpoints"
    if (last := checkpoint.latest(checkpoints)) is not None:
        state.restore(*checkpoint.load(last, settings))
        say(f"going on from {last}: {state.step} of {settings.steps} steps are done")

    def keep(state: TrainState) -> None:
        if state.step:
            checkpoint.save(checkpoints, state.step, state.to_save(), settings)

    clock = Clock()
    with (
        told_to_stop() as stop,
        Metrics(settings.run, resume_at=state.step) as metrics,
        tqdm(total=settings.steps, initial=state.step, desc="training", unit="step") as bar,
    ):
        while state.step < settings.steps and not stop.is_set():
            step, groups, trackers = state.step, [], dict(state.trackers)
            try:
                for index, episode in enumerate(source.episodes(step)):
                    tracker, key = trackers.get(episode.key, law.begin()), (settings.seed, step, index)
                    found = explore(policy, service, episode, tracker.threshold, settings, key, clock)
                    groups.append(finish(policy, service, found, settings, clock))
                    trackers[episode.key] = moved(law, tracker, found)
                with clock("reward_wait"):
                    rewards = [group.rewards() for group in groups]
            except RewardServiceUnavailable:  # what was learned stays; the step at hand is drawn again
                keep(state)
                raise
            try:
                with clock("update"):
                    update = learn(policy, reference, state.optimizer, groups, rewards, state.slope, settings, step)
            except NonFinite as error:
                raise keep_failure(settings.run, step, groups, rewards, error) from error
            state.slope, state.trackers = slope_after(state.slope, groups, rewards), trackers
            state.step += 1
            record = step_record(groups, rewards, update, settings, step, clock.lap())
            metrics.log(step, record)
            keep_images(metrics, step, groups, rewards)
            if state.step % settings.checkpoint.every == 0:
                with clock("checkpoint"):
                    keep(state)
            reward = record["reward_mean"]
            bar.set_postfix_str("no reward" if reward is None else f"reward {reward:.3f}")
            bar.update()
        keep(state)  # here, so that a signal at any moment finds the last step kept
    return state
