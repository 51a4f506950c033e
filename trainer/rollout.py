"""From a task to a group of finished images: reason, preview, screen, finish, request rewards.

All random numbers of a rollout follow from its seed (seed of the run, step, group, index in draw order), so a rollout
does not depend on which others were kept, nor on the order in which the groups of a step are drawn. That order follows
the reward service: while the scores of one group's previews are pending, another group is drawn, or this one further.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from synod.contracts import Pixels, ScoreFailure, ScoreItem
from trainer import scenarios
from trainer.algorithms.aggregate import GroupRewards, is_flat
from trainer.algorithms.screen import ScreenResult, best_and_worst, screen, top_up
from trainer.clock import Clock
from trainer.distributed import Ranks
from trainer.out_of_memory import explain_out_of_memory
from trainer.policy.base import Editor, Policy
from trainer.rewards.base import RewardBackend
from trainer.rewards.terms import Items, submit_terms
from trainer.scenarios import condition, reward_item, surrogate_item
from trainer.screen_plan import Plan, ScreenPlan
from trainer.settings import TrainerSettings
from trainer.types import Reward, Rollout, Seed, Task

AUDIT = int.from_bytes(b"audit")  # a stream of random numbers; those of rollouts have their index there
REFERENCES = 3  # images of the concept sent with each image to reward


@dataclass(frozen=True, slots=True, eq=False)
class Previews:
    """All previews of one task in draw order, and which of them make the group.

    images     decoded previews, uint8 [H W 3]
    scores     surrogate scores, None where one is missing
    screened   the result of the screen
    threshold  the threshold they were screened by; None keeps all
    dropped    how many more were drawn ahead of their scores, and not needed
    step       the denoising step at which they were scored; at step 0 there are no images
    audited    the rejected ones that are finished to measure the screen
    foretold   by step, the surrogate scores of all on their way; None unless the group measures screens
    """

    task: Task
    rollouts: tuple[Rollout, ...]
    images: tuple[Pixels, ...]
    scores: tuple[float | None, ...]
    screened: ScreenResult
    threshold: float | None
    dropped: int = 0
    step: int = 0
    audited: tuple[int, ...] = ()
    foretold: Mapping[int, tuple[float | None, ...]] | None = None

    @property
    def capped(self) -> bool:
        """Whether drawing stopped at its cap, so that rejected previews top up the group."""
        return bool(self.screened.topped_up)


class Awaited(NamedTuple):
    """What a sampling needs to go on: the scores of a batch of previews.

    can_draw  whether it can draw another batch without them, which will probably be needed
    """

    scores: Future[list[Reward]]
    can_draw: bool


Sampling = Generator[Awaited, bool | None, Previews]  # send True to draw without the scores


@dataclass(frozen=True, slots=True, eq=False)
class ScoredGroup:
    """The kept rollouts, finished, with their first images uint8 [H W 3], rewards and answers in the same order.

    A group that another rank drew has its scores, rewards and answers, but no rollouts and no images. `audit` has the
    rewards of `previews.audited`, which are not part of the group. `found_flat` is that rank's `is_flat`, so that
    all ranks replace the same groups, though machines may round differently.
    """

    previews: Previews
    rollouts: tuple[Rollout, ...]
    images: tuple[Pixels | None, ...]
    rewards: tuple[Reward, ...]
    answers: tuple[str, ...]
    audit: tuple[Reward, ...] = ()
    found_flat: bool | None = None

    @property
    def is_ours(self) -> bool:
        """Whether this rank drew the group."""
        return bool(self.rollouts)

    @property
    def is_flat(self) -> bool:
        """Whether there are two rewards or more and all are equal, so that the group has no signal."""
        if self.found_flat is not None:
            return self.found_flat
        spec = self.previews.task.reward
        return is_flat(GroupRewards.of(self.rewards, spec), spec.aggregation)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The kept rollouts, finished, with their first images and pending rewards in order; `audit` of audited ones."""

    previews: Previews
    rollouts: tuple[Rollout, ...]
    images: tuple[Pixels | None, ...]
    pending: tuple[Future[list[Reward]], ...]
    audit: tuple[Future[list[Reward]], ...] = ()

    def wait(self) -> ScoredGroup:
        """Wait for the rewards of all rollouts. Raises RewardServiceUnavailable."""
        rewards, audit = (
            tuple(reward for future in pending for reward in future.result()) for pending in (self.pending, self.audit)
        )
        answers = tuple(rollout.answer for rollout in self.rollouts)
        return ScoredGroup(self.previews, self.rollouts, self.images, rewards, answers, audit)


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
            _surrogate_scores(service, task, batch, decoded, settings) if plan.is_scored else _no_scores(len(batch))
        )
    count = len(scores)
    screened = best_and_worst(scores, plan.kept) if plan.both_tails else top_up(screened, scores, plan.kept)
    dropped, rollouts = len(rollouts) - count, rollouts[:count]
    audited = _audited(scores, screened, plan.audit, key)
    step, measured, foretold = plan.step, plan.measured, dict[int, tuple[float | None, ...]]()
    for step in measured or ():
        rollouts, foretold[step] = yield from _foretell(policy, service, task, rollouts, step, settings, clock)
    kept = tuple(rollouts), tuple(images[:count]), tuple(scores)
    found = None if measured is None else foretold
    return Previews(task, *kept, screened, plan.threshold, dropped, step, audited, found)


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


def _no_scores(count: int) -> Future[list[Reward]]:
    scores: Future[list[Reward]] = Future()
    scores.set_result([Reward(None)] * count)
    return scores


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


def overlap(samplings: Sequence[Sampling], finish: Callable[[Previews], Group], clock: Clock) -> list[Group]:
    """Return the finished group of each sampling, in order.

    A sampling whose scores are pending makes way for the one that waited longest among those whose scores have arrived,
    else for the next one, else for finishing, and if nothing else is left, one draws ahead of its scores. While scores
    are pending, one full group is held back for the time when the last samplings wait. Other full groups are finished
    at once, so that the requests for their rewards spread over the step. Raises what the samplings and their pending
    scores raise.
    """
    unstarted, waiting = deque(range(len(samplings))), dict[int, Awaited]()
    full, groups = dict[int, Previews](), dict[int, Group]()
    while len(groups) < len(samplings):
        arrived = next((place for place, awaited in waiting.items() if awaited.scores.done()), None)
        can_draw = arrived is not None or bool(unstarted)
        if len(full) > (1 if waiting else 0) or (full and not can_draw):
            place = next(iter(full))
            groups[place] = finish(full.pop(place))
        elif can_draw:
            place = unstarted.popleft() if arrived is None else arrived
            waiting.pop(place, None)
            try:
                waiting[place] = next(samplings[place])
            except StopIteration as end:
                full[place] = end.value
        elif (ahead := next((place for place, awaited in waiting.items() if awaited.can_draw), None)) is not None:
            waiting[ahead] = samplings[ahead].send(True)
        else:
            with clock("surrogate"):
                wait([awaited.scores for awaited in waiting.values()], return_when=FIRST_COMPLETED)
    return [groups[place] for place in range(len(samplings))]


def draw_groups(
    policy: Policy,
    service: RewardBackend,
    tasks: Sequence[Task],
    key: Sequence[int],
    first: int,
    plan: Plan,
    settings: TrainerSettings,
    clock: Clock,
    ranks: Ranks,
) -> list[ScoredGroup]:
    """Return a scored group of each task; this rank draws its share, and the scores of the others arrive from theirs.

    `first` is the number of the first task in the step, `key` is (seed, step). Raises RewardServiceUnavailable and
    OutOfMemory, on every other rank OtherRankFailed.
    """
    with ranks.together():
        chosen = [(tasks[i], (*key, first + i)) for i in ranks.mine(len(tasks))]
        samplings = [
            sample_previews(policy, service, task, plan(task, settings, own), settings, own, clock)
            for task, own in chosen
        ]
        with explain_out_of_memory("drawing", policy, settings):
            pending = overlap(samplings, lambda previews: finish(policy, service, previews, settings, clock), clock)
        with clock("reward_wait"):
            own = [group.wait() for group in pending]
        documents = [_to_document(group) for group in own] if ranks.world > 1 else []
    if ranks.world == 1:
        return own
    return _exchange(ranks, tasks, own, documents)


def _exchange(
    ranks: Ranks, tasks: Sequence[Task], own: Sequence[ScoredGroup], sent: Sequence[Mapping[str, Any]]
) -> list[ScoredGroup]:
    """Return the groups of all tasks, those of other ranks without rollouts; `own` are of `ranks.mine(len(tasks))`."""
    documents = ranks.gather(sent)
    ours = dict(zip(ranks.mine(len(tasks)), own, strict=True))
    return [
        ours[place] if place in ours else _from_document(task, document)
        for place, (task, document) in enumerate(zip(tasks, documents, strict=True))
    ]


def _to_document(group: ScoredGroup) -> dict[str, Any]:
    previews = group.previews
    rewards, audit = (
        [asdict(replace(reward, components=dict(reward.components))) for reward in found]
        for found in (group.rewards, group.audit)
    )
    screened = asdict(previews.screened)
    return {
        "scores": previews.scores,
        "screened": screened,
        "threshold": previews.threshold,
        "dropped": previews.dropped,
        "step": previews.step,
        "audited": previews.audited,
        "foretold": None if previews.foretold is None else list(previews.foretold.items()),
        "rewards": rewards,
        "audit": audit,
        "answers": group.answers,
        "flat": group.is_flat,
    }


def _from_document(task: Task, document: Mapping[str, Any]) -> ScoredGroup:
    screened: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document["screened"].items()}
    previews = Previews(
        task,
        (),
        (),
        tuple(document["scores"]),
        ScreenResult(**screened),
        document["threshold"],
        document["dropped"],
        document["step"],
        tuple(document["audited"]),
        None if document["foretold"] is None else {step: tuple(scores) for step, scores in document["foretold"]},
    )
    rewards, audit = (
        tuple(
            Reward(
                **{
                    **one,
                    "failure": None if one["failure"] is None else ScoreFailure(**one["failure"]),
                    "tokens": tuple((token, logp) for token, logp in one["tokens"]),
                }
            )
            for one in document[name]
        )
        for name in ("rewards", "audit")
    )
    return ScoredGroup(previews, (), (), rewards, tuple(document["answers"]), audit, document["flat"])


def replace_flat_groups(
    groups: Sequence[ScoredGroup],
    replacements: Sequence[Task],
    draw: Callable[[Sequence[Task], int], Sequence[ScoredGroup]],
) -> tuple[list[ScoredGroup], list[ScoredGroup]]:
    """Replace groups without spread by groups of other tasks, and return (the groups, those that were replaced).

    DAPO's dynamic sampling (arXiv 2503.14476, sec. 3.2), but bounded: each of `replacements` is drawn once at most, and
    groups that are flat after that stay. `draw(tasks, first)` returns a group for each task; `first` is the number of
    the first one in the step, on which its random numbers depend.
    """
    kept, replaced, left = list(groups), list[ScoredGroup](), list(replacements)
    while left and (flat := [place for place, group in enumerate(kept) if group.is_flat]):
        tasks, left = left[: len(flat)], left[len(flat) :]
        for place, group in zip(flat, draw(tasks, len(groups) + len(replaced)), strict=False):
            replaced.append(kept[place])
            kept[place] = group
    return kept, replaced


def reward_items(task: Task, rollouts: Sequence[Rollout], images: Sequence[Pixels | None]) -> list[ScoreItem]:
    """Return the request items of images, with the first REFERENCES images of the concept."""
    references = task.profile.images[:REFERENCES] if task.profile is not None else ()
    return [reward_item(task, p, r.answer, references) for r, p in zip(rollouts, images, strict=True)]


def result_items(task: Task, rollout: Rollout, images: Sequence[Pixels]) -> Items:
    """Return the request items of a finished rollout with these images, with the first REFERENCES of the concept."""
    references = task.profile.images[:REFERENCES] if task.profile is not None else ()
    return scenarios.result_items(task, images, rollout.answer, references)


def start(policy: Policy, tasks: Sequence[Task], seeds: Sequence[Seed], clock: Clock) -> list[Rollout]:
    """Return a rollout of each task before the first step of its first image; a task with a query is answered first."""
    asked = [place for place, task in enumerate(tasks) if task.query is not None]
    with clock("reason"):
        queries = [query for task in tasks if (query := task.query) is not None]
        answered = policy.answer(queries, [seeds[place] for place in asked]) if asked else ()
    answers = dict(zip(asked, answered, strict=True))
    rollouts = [Rollout(seed, (answers[place],) if place in answers else ()) for place, seed in enumerate(seeds)]
    with clock("preview"):
        return _begin(policy, tasks, rollouts, 0, [()] * len(rollouts)) if tasks[0].draws else rollouts


def _begin(
    policy: Policy, tasks: Sequence[Task], rollouts: Sequence[Rollout], turn: int, images: Sequence[Sequence[Pixels]]
) -> list[Rollout]:
    """Return the rollouts with their next image before its first step, of draw number `turn`, after these images.

    Each turn has its own random numbers.
    """
    rows = zip(tasks, rollouts, images, strict=True)
    conditions = [condition(task, task.draws[turn], rollout.answer, drawn) for task, rollout, drawn in rows]
    seeds = [(*rollout.seed, turn) if turn else rollout.seed for rollout in rollouts]
    if any(one.source is not None for one in conditions):
        assert isinstance(policy, Editor), "the settings give edits to a policy that edits"
        begun = policy.edit(conditions, seeds)
    else:
        begun = policy.start([one.text for one in conditions], seeds)
    return [replace(r, segments=(*r.segments, image)) for r, image in zip(rollouts, begun, strict=True)]


def continue_images(policy: Policy, rollouts: Sequence[Rollout], until: int) -> list[Rollout]:
    """Return the rollouts with their last images at step `until`."""
    images = policy.denoise([rollout.image for rollout in rollouts], until)
    return [rollout.with_image(image) for rollout, image in zip(rollouts, images, strict=True)]


def finish_turns(
    policy: Policy,
    tasks: Sequence[Task],
    rollouts: Sequence[Rollout],
    clock: Clock,
    phases: tuple[str, str] = ("finish", "decode"),
) -> tuple[list[Rollout], list[tuple[Pixels, ...]]]:
    """Finish the begun images, draw those of later turns, and return the rollouts with the images of each in order."""
    turns = len(tasks[0].draws)
    assert all(len(task.draws) == turns for task in tasks), "tasks of one kind"
    finished, images = list(rollouts), [tuple[Pixels, ...]()] * len(rollouts)
    for turn in range(turns):
        with clock(phases[0]):
            begun = _begin(policy, tasks, finished, turn, images) if turn else finished
            finished = continue_images(policy, begun, policy.image_steps)
        with clock(phases[1]):
            decoded = policy.images([rollout.image for rollout in finished])
        images = [(*drawn, image) for drawn, image in zip(images, decoded, strict=True)]
    return finished, images
