"""The turns of a rollout, as a policy draws them: an answer, then images, each after those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from synod.contracts import Pixels
from trainer.clock import Clock
from trainer.policy.base import Editor, Policy
from trainer.scenarios import condition
from trainer.types import Rollout, Seed, Task


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
