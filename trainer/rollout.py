"""From a task to a group of finished images whose rewards are on their way: reason, preview, screen, finish.

All random numbers of a rollout follow from (seed, step, group, its place in the draw order), so what it becomes does
not depend on which others were kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from synod.contracts import Pixels, ScoreItem
from trainer.clock import Clock
from trainer.grpo.screen import ScreenResult, screen, top_up
from trainer.policy.base import Policy
from trainer.reasoning import compound, reward_item, surrogate_item
from trainer.settings import TrainerSettings
from trainer.types import ImageSegment, Pathway, Reward, Rollout, Task, TextSegment

REFERENCES = 3  # images of the concept sent with each image to reward
_TEXT, _IMAGE = 0, 1  # streams of random numbers


class Rewards(Protocol):
    """What a rollout needs of the reward service."""

    def surrogate(self, items: Sequence[ScoreItem]) -> list[Reward]: ...

    def submit(self, items: Sequence[ScoreItem], pathway: Pathway) -> Future[list[Reward]]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Previews:
    """All previews of one task in draw order: rollouts, decoded images, surrogate scores (None: missing), and
    which of them make the group. `threshold` is the one they were screened by."""

    task: Task
    rollouts: tuple[Rollout, ...]
    images: tuple[Pixels, ...]
    scores: tuple[float | None, ...]
    screened: ScreenResult
    threshold: float | None

    @property
    def capped(self) -> bool:
        return bool(self.screened.topped_up)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The kept rollouts, finished, with their images and the rewards to come, chunk by chunk in the same order."""

    previews: Previews
    rollouts: tuple[Rollout, ...]
    images: tuple[Pixels, ...]
    pending: tuple[Future[list[Reward]], ...]

    def rewards(self) -> list[Reward]:
        """Wait for all of them. Raises RewardServiceUnavailable when the service stays away."""
        return [reward for future in self.pending for reward in future.result()]


def sample_previews(
    policy: Policy,
    service: Rewards,
    task: Task,
    threshold: float | None,
    settings: TrainerSettings,
    key: Sequence[int],
    clock: Clock,
) -> Previews:
    """Draw previews, `preview_batch_size` at a time, until `group_size` pass the threshold or the cap is reached.

    With the threshold "none" nothing is scored and exactly one group is drawn. A preview without a score does not
    pass a threshold. At the cap the best of the rejected previews top up the group.
    """
    screening, most = settings.screen, settings.screen.max_previews
    unscreened = screening.threshold == "none"
    rollouts: list[Rollout] = []
    images: list[Pixels] = []
    scores: list[float | None] = []
    while True:
        left = (screening.group_size if unscreened else most) - len(rollouts)
        drawn = _preview(
            policy,
            task,
            settings,
            key,
            range(len(rollouts), len(rollouts) + min(screening.preview_batch_size, left)),
            clock,
        )
        with clock("decode"):
            shown = policy.images([rollout.image for rollout in drawn])
        rollouts += drawn
        images += shown
        if unscreened:
            scores += [None] * len(drawn)
        else:
            with clock("surrogate"):
                scores += [reward.value for reward in service.surrogate([surrogate_item(task, p) for p in shown])]
        screened = screen(scores, threshold, screening.group_size)
        if screened.is_full or len(rollouts) >= most:
            break
    screened = top_up(screened, scores, screening.group_size)
    return Previews(task, tuple(rollouts), tuple(images), tuple(scores), screened, threshold)


def finish(policy: Policy, service: Rewards, previews: Previews, settings: TrainerSettings, clock: Clock) -> Group:
    """Take the kept previews to the last denoising step, and submit each chunk's rewards as soon as it is decoded."""
    chosen = [previews.rollouts[i] for i in previews.screened.indices]
    rollouts: list[Rollout] = []
    images: list[Pixels] = []
    pending = []
    for first in range(0, len(chosen), settings.reward_batch_size):
        chunk = chosen[first : first + settings.reward_batch_size]
        with clock("finish"):
            segments = policy.denoise([rollout.image for rollout in chunk], settings.sampler.denoising_steps)
        with clock("decode"):
            shown = policy.images(segments)
        done = [Rollout(r.index, r.text, image) for r, image in zip(chunk, segments, strict=True)]
        pending.append(service.submit(reward_items(previews.task, done, shown), previews.task.pathway))
        rollouts += done
        images += shown
    return Group(previews, tuple(rollouts), tuple(images), tuple(pending))


def reward_items(task: Task, rollouts: Sequence[Rollout], images: Sequence[Pixels]) -> list[ScoreItem]:
    """What the service is asked about finished images, with the first REFERENCES images of the concept."""
    references = task.profile.images[:REFERENCES] if task.profile is not None else ()
    return [reward_item(task, p, r.answer, references) for r, p in zip(rollouts, images, strict=True)]


def _preview(
    policy: Policy, task: Task, settings: TrainerSettings, key: Sequence[int], places: range, clock: Clock
) -> list[Rollout]:
    """Rollouts number `places` of the draw order, at the screening step. Each reasons for itself."""
    with clock("reason"):
        texts = reason(policy, task, settings, key, places)
    with clock("preview"):
        begun = begin(policy, [task] * len(places), texts, settings, key, places)
        images = policy.denoise(begun, settings.screening_step)
    return [Rollout(i, text, image) for i, text, image in zip(places, texts, images, strict=True)]


def reason(
    policy: Policy, task: Task, settings: TrainerSettings, key: Sequence[int], places: Sequence[int]
) -> Sequence[TextSegment | None]:
    """An answer for each of `places`; None where nothing is asked."""
    if task.query is None:
        return [None] * len(places)
    return policy.reason(task.query, uniforms(key, places, _TEXT, (settings.sampler.max_new_tokens,)))


def begin(
    policy: Policy,
    tasks: Sequence[Task],
    texts: Sequence[TextSegment | None],
    settings: TrainerSettings,
    key: Sequence[int],
    places: Sequence[int],
) -> list[ImageSegment]:
    """An image not yet drawn for each of `places`, from its task's prompt and answer."""
    answers = ["" if text is None else text.text for text in texts]
    prompts = [compound(e.prompt.text, answer) for e, answer in zip(tasks, answers, strict=True)]
    shape = (settings.sampler.denoising_steps, 2, policy.positions)
    return policy.begin(prompts, uniforms(key, places, _IMAGE, shape))


def uniforms(key: Sequence[int], places: Sequence[int], stream: int, shape: tuple[int, ...]) -> Tensor:
    """Float32 [len(places), *shape] in (0, 1), row by row from (key, place, stream)."""
    rows = [np.random.default_rng([*key, place, stream]).random(shape, np.float32) for place in places]
    return torch.from_numpy(np.stack(rows).clip(2.0**-24, 1.0 - 2.0**-24))
