"""A group of rollouts of one task: its previews, finished images and rewards; and how it travels to other ranks."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from typing import Any

from synod.contracts import Pixels, ScoreFailure
from trainer.algorithms.aggregate import GroupRewards, is_flat
from trainer.algorithms.screen import ScreenResult
from trainer.types import Reward, Rollout, Task


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


@dataclass(frozen=True, slots=True, eq=False)
class ScoredGroup:
    """The kept rollouts, finished, with their first images uint8 [H W 3], rewards and answers in the same order.

    A group that another rank drew has its scores, rewards and answers, but no rollouts and no images. `audit` has the
    rewards of `previews.audited`, which are not part of the group. `found_flat` is that rank's `is_flat`, so that
    all ranks replace the same groups, though machines may round differently. `found_cut` is that rank's `text_cut`.
    """

    previews: Previews
    rollouts: tuple[Rollout, ...]
    images: tuple[Pixels | None, ...]
    rewards: tuple[Reward, ...]
    answers: tuple[str, ...]
    audit: tuple[Reward, ...] = ()
    found_flat: bool | None = None
    found_cut: int = 0

    @property
    def text_cut(self) -> int:
        """How many rollouts have a prompt that the policy did not read to its end."""
        return sum(rollout.num_cut > 0 for rollout in self.rollouts) if self.is_ours else self.found_cut

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


def to_document(group: ScoredGroup) -> dict[str, Any]:
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
        "cut": group.text_cut,
    }


def from_document(task: Task, document: Mapping[str, Any]) -> ScoredGroup:
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
    answers = tuple(document["answers"])
    return ScoredGroup(previews, (), (), rewards, answers, audit, document["flat"], document["cut"])
