"""What the rewards of rejected rollouts, finished at random, say about a screen. Pure.

A rollout that the screen keeps has a reward for certain, a rejected one with the probability `share` of the audit. So
a pair of rollouts i, j is observed with the probability 1 / (w_i w_j), where w is 1 for a kept rollout and 1 / share
for a rejected one, and

    sum over pairs of observed rollouts of w_i w_j (x_i - x_j)(y_i - y_j)
        = (sum_i w_i) sum_i w_i (x_i - m_x)(y_i - m_y),    m: the means weighted by w

is an unbiased estimate of the same sum over all pairs of the group (Horvitz and Thompson 1952). Kept rollouts alone
would understate a correlation, because the screen cuts the range of their scores.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from trainer.algorithms.costs import Costs, Work

MIN_GROUPS = 2  # fewer have no standard error


@dataclass(frozen=True, slots=True)
class Observed:
    """A rollout with a surrogate score and a reward.

    weight    1 over the probability with which the reward was observed, 1 or more
    kept      whether the screen kept it
    rejected  whether its score was too low, or in the middle; False for one that was merely not needed any more
    """

    score: float
    reward: float
    weight: float
    kept: bool
    rejected: bool


@dataclass(frozen=True, slots=True)
class Correlation:
    """A correlation within groups, from sums over them.

    groups      their number; those of a faded sum count as less
    xy, xx, yy  sums of the groups' estimates of centred products
    squares     sums over groups of xy xy, xy xx, xy yy, xx xx, xx yy and yy yy, for the standard error
    """

    groups: float = 0
    xy: float = 0.0
    xx: float = 0.0
    yy: float = 0.0
    squares: tuple[float, ...] = (0.0,) * 6

    def add(self, x: Sequence[float], y: Sequence[float], weight: Sequence[float], drawn: int) -> Correlation:
        """Add a group of `drawn` rollouts, of which these were observed."""
        total = math.fsum(weight)

        def product(a: Sequence[float], b: Sequence[float]) -> float:
            a_mean, b_mean = (math.fsum(w * v for w, v in zip(weight, one, strict=True)) / total for one in (a, b))
            found = (w * (p - a_mean) * (q - b_mean) for w, p, q in zip(weight, a, b, strict=True))
            return total * math.fsum(found) / drawn

        xy, xx, yy = product(x, y), product(x, x), product(y, y)
        new = (xy * xy, xy * xx, xy * yy, xx * xx, xx * yy, yy * yy)
        squares = tuple(a + b for a, b in zip(self.squares, new, strict=True))
        return Correlation(self.groups + 1, self.xy + xy, self.xx + xx, self.yy + yy, squares)

    def faded(self, memory: float) -> Correlation:
        """Return the sums with every group counting `memory` times what it counted."""
        squares = tuple(memory**2 * one for one in self.squares)
        return Correlation(memory * self.groups, memory * self.xy, memory * self.xx, memory * self.yy, squares)

    @property
    def value(self) -> float | None:
        """The correlation; None without spread."""
        return self.xy / math.sqrt(self.xx * self.yy) if self.xx > 0 and self.yy > 0 else None

    @property
    def error(self) -> float | None:
        """The standard error, linearised, from the differences between groups; None below MIN_GROUPS."""
        rho = self.value
        if rho is None or self.groups < MIN_GROUPS:
            return None
        # A group's influence on rho is a xy + b xx + c yy, and the influences of all groups add up to 0.
        a, b, c = 1 / math.sqrt(self.xx * self.yy), -rho / (2 * self.xx), -rho / (2 * self.yy)
        factors = (a * a, 2 * a * b, 2 * a * c, b * b, 2 * b * c, c * c)
        total = math.fsum(f * s for f, s in zip(factors, self.squares, strict=True))
        return math.sqrt(max(0.0, total) * self.groups / (self.groups - 1))


@dataclass(frozen=True, slots=True)
class Audit:
    """Sums over the screened groups of one kind of tasks.

    pearson, spearman       of surrogate score and reward within a group, over groups whose rewards differ
    groups, drawn, kept     counts; `audited` of the rejected rollouts were finished
    freedom, spread         sums over groups of G - 1, and of the kept scores' squared distances from the baseline in
                            units of the variance of all scores of the group
    rejected, missed        weights of audited rollouts that were rejected, and of those that the screen should have
                            kept by their reward
    work, plain             what was done, without the audit, and the work of plain groups of as many kept rollouts
    """

    pearson: Correlation = field(default_factory=Correlation)
    spearman: Correlation = field(default_factory=Correlation)
    groups: int = 0
    drawn: int = 0
    kept: int = 0
    audited: int = 0
    freedom: int = 0
    spread: float = 0.0
    rejected: float = 0.0
    missed: float = 0.0
    work: Work = field(default_factory=Work)
    plain: Work = field(default_factory=Work)

    def add(
        self,
        scores: Sequence[float | None],
        kept: Sequence[int],
        observed: Sequence[Observed],
        *,
        population: bool,
        both_tails: bool = False,
    ) -> Audit:
        """Add a group: the scores of all its previews, the places of the kept ones, and what has a reward.

        `population`: the baseline is the mean of all previews, else that of the kept ones. A screen should have kept
        the rewards above the median of the kept ones; one that keeps `both_tails` those further from the kept ones'
        mean than the kept ones are in the median.
        """
        measured = [score for score in scores if score is not None]
        audited = [one for one in observed if not one.kept]
        found = replace(
            self,
            groups=self.groups + 1,
            drawn=self.drawn + len(scores),
            kept=self.kept + len(kept),
            audited=self.audited + len(audited),
            freedom=self.freedom + len(kept) - 1,
            spread=self.spread + spread(measured, [s for i in kept if (s := scores[i]) is not None], population),
        )
        if any(one.kept for one in observed):
            values = _distances(observed) if both_tails else [one.reward for one in observed]
            pairs = list(zip(observed, values, strict=True))
            median = statistics.median(value for one, value in pairs if one.kept)
            rejected = [(one, value) for one, value in pairs if one.rejected and not one.kept]
            found = replace(
                found,
                rejected=found.rejected + math.fsum(one.weight for one, _ in rejected),
                missed=found.missed + math.fsum(one.weight for one, value in rejected if value > median),
            )
        return found._with_correlations(measured, observed)

    def _with_correlations(self, measured: Sequence[float], observed: Sequence[Observed]) -> Audit:
        reward, weight = [one.reward for one in observed], [one.weight for one in observed]
        if len(set(reward)) < 2:
            return self
        score = [one.score for one in observed]
        score_rank = ranks(score, measured, [1.0] * len(measured))
        reward_rank = ranks(reward, reward, weight)
        return replace(
            self,
            pearson=self.pearson.add(score, reward, weight, len(measured)),
            spearman=self.spearman.add(score_rank, reward_rank, weight, len(measured)),
        )

    @property
    def false_rejections(self) -> float | None:
        """The share of rejected rollouts that the screen should have kept by their reward; None without any."""
        return self.missed / self.rejected if self.rejected else None

    @property
    def steps_saved(self) -> float | None:
        """The share of denoising steps that the screen saved, against finishing every preview."""
        return 1 - self.work.steps * self.kept / (self.plain.steps * self.drawn) if self.plain.steps else None

    @property
    def signal(self) -> float | None:
        """The power of a group's gradient relative to that of a plain group of the same size; None without a rho.

        (sum E[a R])^2 / sum E[a^2] in the limit of a weak signal, with R = rho x + the rest, which the screen does not
        touch: 1 - rho^2 + rho^2 spread / freedom.
        """
        rho = self.pearson.value
        return None if rho is None or not self.freedom else 1 - rho**2 * (1 - self.spread / self.freedom)

    def signal_per_second(self, costs: Costs) -> float | None:
        """Return the signal per second relative to that of a plain group of the same size.

        1: the screen is worth its time and no more. None before all of it was measured.
        """
        plain, screened = costs.of(self.plain), costs.of(self.work)
        return self.signal * plain / screened if self.signal is not None and plain and screened else None


def _distances(observed: Sequence[Observed]) -> list[float]:
    """Return each reward's distance from the mean of the kept ones, which no audited reward can move."""
    mean = statistics.fmean(one.reward for one in observed if one.kept)
    return [abs(one.reward - mean) for one in observed]


def ranks(values: Sequence[float], among: Sequence[float], weight: Sequence[float]) -> list[float]:
    """Return each value's rank in [0, 1]: the weighted share of `among` that is lower, equal ones counting half."""
    total = math.fsum(weight)
    return [
        math.fsum(w * ((other < value) + 0.5 * (other == value)) for other, w in zip(among, weight, strict=True))
        / total
        for value in values
    ]


def spread(measured: Sequence[float], kept: Sequence[float], population: bool) -> float:
    """Return the kept scores' squared distances from the baseline, in units of the variance of all."""
    if len(kept) < 2:
        return 0.0
    variance = statistics.variance(measured)
    if variance == 0:
        return float(len(kept) - 1)
    center = statistics.fmean(measured if population else kept)
    return math.fsum((score - center) ** 2 for score in kept) / variance
