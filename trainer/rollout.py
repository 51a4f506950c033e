"""The groups of a step: drawn while scores of others are pending, shared between ranks, replaced if they are flat.

The order in which groups are drawn follows the reward service: while the scores of one group's previews are pending,
another group is drawn, or this one further. No rollout depends on it (`trainer.sampling`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any

from trainer.clock import Clock
from trainer.distributed import Ranks
from trainer.groups import Group, Previews, ScoredGroup, from_document, to_document
from trainer.out_of_memory import explain_out_of_memory
from trainer.policy.base import Policy
from trainer.rewards.base import RewardBackend
from trainer.sampling import Awaited, Sampling, finish, sample_previews
from trainer.screen_plan import Plan
from trainer.settings import TrainerSettings
from trainer.types import Task


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
        documents = [to_document(group) for group in own] if ranks.world > 1 else []
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
        ours[place] if place in ours else from_document(task, document)
        for place, (task, document) in enumerate(zip(tasks, documents, strict=True))
    ]


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
