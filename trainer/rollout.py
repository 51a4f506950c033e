"""From a task to a group of finished images: reason, preview, screen, finish, request rewards.

The random numbers of a rollout follow from (seed, step, group, its index in draw order), so a rollout does not depend
on which others were kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from synod.contracts import Pixels, ScoreItem
from trainer.algorithms.screen import ScreenResult, screen, top_up
from trainer.clock import Clock
from trainer.policy.base import Policy
from trainer.rewards.base import RewardBackend
from trainer.scenarios import compound, reward_item, surrogate_item
from trainer.settings import TrainerSettings
from trainer.types import ImageSegment, Reward, Rollout, Task, TextSegment

REFERENCES = 3  # images of the concept sent with each image to reward
_TEXT, _IMAGE = 0, 1  # streams of random numbers


@dataclass(frozen=True, slots=True, eq=False)
class Previews:
    """All previews of one task in draw order, and which of them make the group.

    images     decoded previews, uint8 [H W 3]
    scores     surrogate scores, None where one is missing
    screened   the result of the screen
    threshold  the threshold they were screened by; None keeps all
    """

    task: Task
    rollouts: tuple[Rollout, ...]
    images: tuple[Pixels, ...]
    scores: tuple[float | None, ...]
    screened: ScreenResult
    threshold: float | None

    @property
    def capped(self) -> bool:
        """Whether drawing stopped at its cap, so that rejected previews top up the group."""
        return bool(self.screened.topped_up)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The kept rollouts, finished, with their images and pending rewards in the same order."""

    previews: Previews
    rollouts: tuple[Rollout, ...]
    images: tuple[Pixels, ...]
    pending: tuple[Future[list[Reward]], ...]

    def rewards(self) -> list[Reward]:
        """Wait for the rewards of all rollouts. Raises RewardServiceUnavailable."""
        return [reward for future in self.pending for reward in future.result()]


def sample_previews(
    policy: Policy,
    service: RewardBackend,
    task: Task,
    threshold: float | None,
    settings: TrainerSettings,
    key: Sequence[int],
    clock: Clock,
) -> Previews:
    """Draw previews until `group_size` pass the threshold or the cap is reached.

    They are drawn `preview_batch_size` at a time. With `screen.threshold` "none" nothing is scored and exactly one
    group is drawn. A preview without a score does not pass a threshold. At the cap the best rejected previews top up
    the group.
    """
    limits = settings.screen
    unscreened = limits.threshold == "none"
    cap = limits.group_size if unscreened else limits.max_previews
    rollouts: list[Rollout] = []
    images: list[Pixels] = []
    scores: list[float | None] = []
    while True:
        first = len(rollouts)
        batch = _preview(policy, task, settings, key, range(first, min(first + limits.preview_batch_size, cap)), clock)
        with clock("decode"):
            decoded = policy.images([rollout.image for rollout in batch])
        rollouts += batch
        images += decoded
        if unscreened:
            scores += [None] * len(batch)
        else:
            with clock("surrogate"):
                scores += [r.value for r in service.score_previews([surrogate_item(task, p) for p in decoded])]
        screened = screen(scores, threshold, limits.group_size)
        if screened.is_full or len(rollouts) >= cap:
            break
    screened = top_up(screened, scores, limits.group_size)
    return Previews(task, tuple(rollouts), tuple(images), tuple(scores), screened, threshold)


def finish(
    policy: Policy, service: RewardBackend, previews: Previews, settings: TrainerSettings, clock: Clock
) -> Group:
    """Finish the kept previews and request their rewards, `reward_batch_size` at a time.

    The service scores one batch while the next is drawn.
    """
    chosen = [previews.rollouts[i] for i in previews.screened.indices]
    rollouts: list[Rollout] = []
    images: list[Pixels] = []
    pending = []
    for first in range(0, len(chosen), settings.reward_batch_size):
        batch = chosen[first : first + settings.reward_batch_size]
        with clock("finish"):
            segments = policy.denoise([rollout.image for rollout in batch], settings.sampler.denoising_steps)
        with clock("decode"):
            decoded = policy.images(segments)
        finished = [Rollout(r.index, r.text, image) for r, image in zip(batch, segments, strict=True)]
        pending.append(service.submit(reward_items(previews.task, finished, decoded), previews.task.reward))
        rollouts += finished
        images += decoded
    return Group(previews, tuple(rollouts), tuple(images), tuple(pending))


def reward_items(task: Task, rollouts: Sequence[Rollout], images: Sequence[Pixels]) -> list[ScoreItem]:
    """Return the request items of finished images, with the first REFERENCES images of the concept."""
    references = task.profile.images[:REFERENCES] if task.profile is not None else ()
    return [reward_item(task, p, r.answer, references) for r, p in zip(rollouts, images, strict=True)]


def _preview(
    policy: Policy, task: Task, settings: TrainerSettings, key: Sequence[int], indices: range, clock: Clock
) -> list[Rollout]:
    """Draw the rollouts `indices` up to the screening step, each with an answer of its own."""
    with clock("reason"):
        texts = reason(policy, task, settings, key, indices)
    with clock("preview"):
        begun = begin(policy, [task] * len(indices), texts, settings, key, indices)
        images = policy.denoise(begun, settings.screening_step)
    return [Rollout(i, text, image) for i, text, image in zip(indices, texts, images, strict=True)]


def reason(
    policy: Policy, task: Task, settings: TrainerSettings, key: Sequence[int], indices: Sequence[int]
) -> Sequence[TextSegment | None]:
    """Sample an answer for each rollout of `indices`; None if the task has no query."""
    if task.query is None:
        return [None] * len(indices)
    return policy.reason(task.query, uniforms(key, indices, _TEXT, (settings.sampler.max_new_tokens,)))


def begin(
    policy: Policy,
    tasks: Sequence[Task],
    texts: Sequence[TextSegment | None],
    settings: TrainerSettings,
    key: Sequence[int],
    indices: Sequence[int],
) -> list[ImageSegment]:
    """Return a fully masked image for each rollout of `indices`, from its prompt and answer."""
    answers = ["" if text is None else text.text for text in texts]
    prompts = [compound(task.prompt.text, answer) for task, answer in zip(tasks, answers, strict=True)]
    shape = (settings.sampler.denoising_steps, 2, policy.positions)
    return policy.begin(prompts, uniforms(key, indices, _IMAGE, shape))


def uniforms(key: Sequence[int], indices: Sequence[int], stream: int, shape: tuple[int, ...]) -> Tensor:
    """Return float32 [len(indices), *shape] in (0, 1); row i follows from (key, indices[i], stream)."""
    rows = [np.random.default_rng([*key, index, stream]).random(shape, np.float32) for index in indices]
    return torch.from_numpy(np.stack(rows).clip(2.0**-24, 1.0 - 2.0**-24))
