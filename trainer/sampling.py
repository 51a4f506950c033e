"""From a task to a group of finished images: preview, screen, finish, request scores and rewards.

All random numbers of a rollout follow from its seed (seed of the run, step, group, index in draw order), so a rollout
does not depend on which others were kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from synod.contracts import Pixels, ScoreItem
from trainer import scenarios
from trainer.algorithms.screen import ScreenResult, best_and_worst, screen, top_up
from trainer.clock import Clock
from trainer.groups import Group, Previews
from trainer.policy.base import Policy
from trainer.rewards.base import RewardBackend
from trainer.rewards.terms import Items, done, submit_terms
from trainer.scenarios import reward_item, surrogate_item
from trainer.screen_plan import ScreenPlan
from trainer.settings import TrainerSettings
from trainer.turns import continue_images, finish_turns, start
from trainer.types import Reward, Rollout, Task

AUDIT = int.from_bytes(b"audit")  # a stream of random numbers; those of rollouts have their index there
REFERENCES = 3  # images of the concept sent with each image to reward


class Awaited(NamedTuple):
    """What a sampling needs to go on: the scores of a batch of previews.

    can_draw  whether it can draw another batch without them, which will probably be needed
    """

    scores: Future[list[Reward]]
    can_draw: bool


Sampling = Generator[Awaited, bool | None, Previews]  # send True to draw without the scores


def sample_previews(
    policy: Policy,
    service: RewardBackend,
    task: Task,
    plan: ScreenPlan,
    settings: TrainerSettings,
    key: Sequence[int],
    clock: Clock,
) -> Sampling:
    """Draw previews until as many as are to be finished pass the threshold, or as many as the plan allows are drawn.

    For both tails all of these are drawn. They are drawn `preview_batch_size` at a time. Yields what it waits for, the
    scores of one batch after the other; continue it when they have arrived, or send True to draw the next batch
    already. Previews drawn ahead are dropped if those before them suffice, so they change nothing. They are offered
    unless the pending ones are expected to suffice, by the plan's pass rate.

    A preview without a score does not pass a threshold. At the cap the best rejected previews top up the group.
    """
    wanted, size = plan.drawn if plan.both_tails else plan.kept, settings.screen.preview_batch_size
    rollouts: list[Rollout] = []
    images: list[Pixels] = []
    scores: list[float | None] = []
    pending: deque[Future[list[Reward]]] = deque()
    screened = screen(scores, plan.threshold, wanted)
    while not screened.is_full and len(scores) < plan.drawn:
        expected = screened.passed + plan.pass_rate * (len(rollouts) - len(scores))
        can_draw = len(rollouts) < plan.drawn and expected < wanted
        if pending and not (yield Awaited(pending[0], can_draw)):
            scores += [reward.value for reward in pending.popleft().result()]
            screened = screen(scores, plan.threshold, wanted)
            continue
        seeds = [(*key, i) for i in range(len(rollouts), min(len(rollouts) + size, plan.drawn))]
        batch, decoded = _preview(policy, start(policy, [task] * len(seeds), seeds, clock), plan.step, clock)
        rollouts += batch
        images += decoded or ()
        pending.append(
            _surrogate_scores(service, task, batch, decoded, settings)
            if plan.is_scored
            else done([Reward(None)] * len(batch))
        )
    count = len(scores)
    screened = best_and_worst(scores, plan.kept) if plan.both_tails else top_up(screened, scores, plan.kept)
    dropped, rollouts = len(rollouts) - count, rollouts[:count]
    audited = _audited(scores, screened, plan.audit, key)
    measured, foretold = plan.measured, dict[int, tuple[float | None, ...]]()
    for step in measured or ():
        rollouts, foretold[step] = yield from _foretell(policy, service, task, rollouts, step, settings, clock)
    final_step = measured[-1] if measured else plan.step
    kept = tuple(rollouts), tuple(images[:count]), tuple(scores)
    found = None if measured is None else foretold
    return Previews(task, *kept, screened, plan.threshold, dropped, final_step, audited, found)


def _preview(
    policy: Policy, rollouts: Sequence[Rollout], step: int, clock: Clock
) -> tuple[Sequence[Rollout], list[Pixels] | None]:
    """Return the rollouts at a step with their decoded previews; None before the first step."""
    if not step:
        return rollouts, None
    with clock("preview"):
        rollouts = continue_images(policy, rollouts, step)
    with clock("decode"):
        return rollouts, policy.images([rollout.image for rollout in rollouts])


def _foretell(
    policy: Policy,
    service: RewardBackend,
    task: Task,
    rollouts: Sequence[Rollout],
    step: int,
    settings: TrainerSettings,
    clock: Clock,
) -> Generator[Awaited, bool | None, tuple[list[Rollout], tuple[float | None, ...]]]:
    """Continue all rollouts until a step, `preview_batch_size` at a time, and return them with their surrogate scores.

    Yields what it waits for.
    """
    size = settings.screen.preview_batch_size
    continued: list[Rollout] = []
    pending = []
    for first in range(0, len(rollouts), size):
        batch, decoded = _preview(policy, rollouts[first : first + size], step, clock)
        pending.append(_surrogate_scores(service, task, batch, decoded, settings))
        continued += batch
    for awaited in pending:
        yield Awaited(awaited, can_draw=False)
    return continued, tuple(reward.value for awaited in pending for reward in awaited.result())


def _audited(
    scores: Sequence[float | None], screened: ScreenResult, share: float, key: Sequence[int]
) -> tuple[int, ...]:
    """Return the rejected previews that an audit finishes: each with the probability `share`, by numbers of the key."""
    if not share:
        return ()
    kept, uniform = set(screened.indices), np.random.default_rng([*key, AUDIT]).random(len(scores))
    return tuple(i for i, score in enumerate(scores) if score is not None and i not in kept and uniform[i] < share)


def _surrogate_scores(
    service: RewardBackend,
    task: Task,
    rollouts: Sequence[Rollout],
    images: Sequence[Pixels] | None,
    settings: TrainerSettings,
) -> Future[list[Reward]]:
    """Request the surrogate scores of previews; `images` None: before any was begun, by the reward's known terms.

    A surrogate of the reward's own terms reads the answer, which a surrogate scorer must not (`surrogate_item`). That
    is sound here, because the answer's terms are part of the reward itself: the screen prefers no answer that the
    reward does not prefer.
    """
    if images is None or settings.rewards.is_screened_by_reward:
        items = reward_items(task, rollouts, images or [None] * len(rollouts))
        return service.submit_previews(items, task.reward.of_previews)
    return service.submit_previews([surrogate_item(task, image) for image in images])


def finish(
    policy: Policy, service: RewardBackend, previews: Previews, settings: TrainerSettings, clock: Clock
) -> Group:
    """Finish the turns of the kept previews and request their rewards, `reward_batch_size` at a time; then the audited.

    The service scores one batch while the next is drawn. The audit's batches are its own, so that it changes no kept
    rollout.
    """
    parts = [(previews.screened.indices, ("finish", "decode")), (previews.audited, ("audit", "audit"))]
    found = []
    for indices, phases in parts:
        chosen = [previews.rollouts[i] for i in indices]
        rollouts: list[Rollout] = []
        images: list[Pixels | None] = []
        pending: list[Future[list[Reward]]] = []
        for first in range(0, len(chosen), settings.reward_batch_size):
            batch = chosen[first : first + settings.reward_batch_size]
            finished, decoded = finish_turns(policy, [previews.task] * len(batch), batch, clock, phases)
            items = [result_items(previews.task, *one) for one in zip(finished, decoded, strict=True)]
            pending.append(submit_terms(service, items, previews.task.reward))
            rollouts += finished
            images += [next(iter(drawn), None) for drawn in decoded]
        found.append((tuple(rollouts), tuple(images), tuple(pending)))
    kept, (_, _, audit) = found
    return Group(previews, *kept, audit)


def reward_items(task: Task, rollouts: Sequence[Rollout], images: Sequence[Pixels | None]) -> list[ScoreItem]:
    """Return the request items of images, with the first REFERENCES images of the concept."""
    return [reward_item(task, p, r.answer, _references(task)) for r, p in zip(rollouts, images, strict=True)]


def result_items(task: Task, rollout: Rollout, images: Sequence[Pixels]) -> Items:
    """Return the request items of a finished rollout with these images, with the first REFERENCES of the concept."""
    return scenarios.result_items(task, images, rollout.answer, _references(task))


def _references(task: Task) -> Sequence[Pixels]:
    return task.profile.images[:REFERENCES] if task.profile is not None else ()
