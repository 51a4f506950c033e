"""Which screen pays, from groups whose rollouts were all finished, and scored on the way. Pure.

A screen at step s draws N rollouts until s, scores them, and finishes the G best and worst of them for the update. Its
signal is the power of a group's gradient relative to that of a plain group of G, in the limit of a weak signal and if
the reward depends on the score in a line (docs/screens.md, "Audit of a screen"):

    signal(s) = 1 + rho_s^2 c_s,    c_s = S_s / (G - 1) - 1

rho_s is the correlation within a group of the scores at s with the rewards, and S_s the sum of squared distances of the
G scores from the mean of all N, in units of their variance. At the last step, the score is the reward itself and rho is
1: all N are finished, and the G furthest from their mean make the update. Divided by seconds and by what a plain group
gives in a second this is the gain of a screen. The gain of no screen is 1.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from trainer.algorithms.audit import Correlation, ranks, spread
from trainer.algorithms.costs import Costs, Work
from trainer.algorithms.screen import best_and_worst, extremes

MEMORY = 0.95  # what a group counts after each later one: about the last 20 count
EVIDENCE = 3  # measured groups before signals are stated and a screen moves; a pathway's first groups measure
DRAWN = 2  # N / G


class Estimate(NamedTuple):
    """A measured value and its standard error."""

    value: float
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class Foresight:
    """How well the scores at one step foretell rewards.

    correlation  of scores and rewards within a group; `rank_correlation` of their ranks, which is reported
    contrast     the sum over its groups of c_s; `squares` of its squares. All fade as the correlation's sums do
    missed       the sum over its groups of the share of rejected rollouts that are among the G furthest from the mean
                 reward; of a choice at random it is 1 / 2
    """

    correlation: Correlation = field(default_factory=Correlation)
    contrast: float = 0.0
    squares: float = 0.0
    missed: float = 0.0
    rank_correlation: Correlation = field(default_factory=Correlation)

    def add(
        self, scores: Sequence[float | None], rewards: Sequence[float | None], group_size: int, *, last: bool
    ) -> Foresight:
        """Add a group of finished rollouts. `last`: the scores are the rewards.

        Those without a score or a reward are left out; a group whose other rewards are all equal changes nothing.
        """
        pairs = [(x, y) for x, y in zip(scores, rewards, strict=True) if x is not None and y is not None]
        score, reward = [x for x, _ in pairs], [y for _, y in pairs]
        if len(set(reward)) < 2:
            return self
        mean = statistics.fmean(score)
        kept = extremes([x - mean for x in score], group_size) if last else best_and_worst(score, group_size).indices
        contrast = spread(score, [score[i] for i in kept], population=True) / (len(kept) - 1) - 1
        alike = [1.0] * len(score)
        score_ranks, reward_ranks = ranks(score, score, alike), ranks(reward, reward, alike)
        return Foresight(
            self.correlation.faded(MEMORY).add(score, reward, alike, len(score)),
            MEMORY * self.contrast + contrast,
            MEMORY * self.squares + contrast**2,
            MEMORY * self.missed + _missed(reward, kept, group_size),
            self.rank_correlation.faded(MEMORY).add(score_ranks, reward_ranks, alike, len(score)),
        )

    @property
    def false_rejections(self) -> float | None:
        """The share of rejected rollouts whose rewards are among the G furthest from the mean; None without groups."""
        return self.missed / self.correlation.groups if self.correlation.groups else None

    @property
    def signal(self) -> Estimate:
        """The signal of a screen by these scores; 1, that of a choice at random, without evidence of a correlation.

        The square of the estimated correlation is too high by the square of its error, which is subtracted.
        """
        rho, error, groups = self.correlation.value, self.correlation.error, self.correlation.groups
        if rho is None or error is None:
            return Estimate(1.0)
        contrast = self.contrast / groups
        contrast_variance = max(0.0, self.squares / groups - contrast**2) / (groups - 1)
        square = max(0.0, rho**2 - error**2)
        square_variance = 4 * rho**2 * error**2 + 2 * error**4
        return Estimate(1 + square * contrast, math.sqrt(square_variance * contrast**2 + square**2 * contrast_variance))


def _missed(rewards: Sequence[float], kept: Sequence[int], group_size: int) -> float:
    mean, rejected = statistics.fmean(rewards), set(range(len(rewards))) - set(kept)
    wanted = set(extremes([reward - mean for reward in rewards], group_size))
    return len(rejected & wanted) / len(rejected) if rejected else 0.0


@dataclass(frozen=True, slots=True)
class AutoScreen:
    """The screen of one pathway, and what was measured about the others.

    step        the denoising step at which rollouts are screened: 0 for finished answers, the last step for finished
                images; None: nothing is screened
    measured    groups that were measured, without those whose rewards are all equal
    foresights  by step; the last step is one of them
    """

    step: int | None
    measured: int = 0
    foresights: Mapping[int, Foresight] = field(default_factory=dict)

    def add(
        self, scores: Mapping[int, Sequence[float | None]], rewards: Sequence[float | None], group_size: int, last: int
    ) -> AutoScreen:
        """Add a measured group: the scores of its rollouts at each step before the `last` one, and their rewards."""
        found = {
            step: self.foresights.get(step, Foresight()).add(here, rewards, group_size, last=step == last)
            for step, here in {**scores, last: rewards}.items()
        }
        varied = len({reward for reward in rewards if reward is not None}) > 1
        return AutoScreen(self.step, self.measured + varied, {**self.foresights, **found})

    @property
    def has_evidence(self) -> bool:
        """Whether enough groups were measured for signals and gains."""
        return self.measured >= EVIDENCE

    def gains(self, costs: Costs, group_size: int, *, has_answers: bool, draws: int = 1) -> dict[int | None, Estimate]:
        """Return the gain of the screen at each step, and of none; empty without evidence, or costs of all work.

        Errors are those of the signals: costs count as exact.
        """

        def seconds(step: int | None) -> float | None:
            work = group_work(step, group_size, max(self.foresights), has_answers=has_answers, draws=draws)
            return costs.of(work)

        if not self.has_evidence or (plain := seconds(None)) is None:
            return {}
        found: dict[int | None, Estimate] = {None: Estimate(1.0)}
        for step, foresight in self.foresights.items():
            if not (screened := seconds(step)):
                return {}
            found[step] = Estimate(*(part * plain / screened for part in foresight.signal))
        return found

    def moved(self, gains: Mapping[int | None, Estimate]) -> AutoScreen:
        """Return the pathway with the best of the screens that exceed the present one by more than the error.

        To draw without a screen is one of the choices. The error is that of the difference of the gains if both were
        measured apart, which is more than it is; a choice whose own error is too large is passed over. Nothing moves
        without gains.
        """
        if not gains:
            return self
        now = gains[self.step]
        better = [step for step, one in gains.items() if one.value - now.value > math.hypot(one.error, now.error)]
        if not better:
            return self
        return AutoScreen(max(better, key=lambda step: gains[step].value), self.measured, self.foresights)


def group_work(step: int | None, group_size: int, last: int, *, has_answers: bool, draws: int = 1) -> Work:
    """Return the work of a group that is screened at a step; None: of a plain group.

    `last` is the number of denoising steps of an image, `draws` that of the images of a rollout, of which the first is
    screened.
    """
    drawn = group_size if step is None else DRAWN * group_size
    finished = drawn if step is None or step == last else group_size
    previews = drawn if step is not None and step < last else 0
    until = last if step is None else step
    return Work(
        answers=drawn * has_answers,
        steps=drawn * until + finished * (draws * last - until),
        images=draws * finished + (previews if until else 0),
        scores=previews,
        rewards=finished,
        rollouts=group_size,
    )


def screen_name(step: int, last: int | None) -> str:
    """Return what a screen at a step screens, in words. `last` is the last step, None if it is not known."""
    return {last: "finished images", 0: "finished answers"}.get(step, f"previews at step {step}")
