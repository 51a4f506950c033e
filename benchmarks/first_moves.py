"""Compare ways to decide when the screens of `screen.select` "auto" move, on simulated populations.

    python -m benchmarks.first_moves --runs 10        # 30 s on one idle core; needs no service and no policy

Three pathways share a run: "textual" and "visual" with an answer, which begin with a screen at step 0, and "none",
which begins without one. A score has a known correlation with the reward at each step. Printed is, for each way and
world, the signal per second of the first groups, relative to a run that knows the best screens from the start and
measures nothing; the groups before a pathway's first move; and the share of first moves that were right.

    own        each pathway decides by its own measured groups
    pooled     each pathway decides by the measured groups of all
    partial    a pathway's signals are shrunk to the mean of all, by the variances within and between pathways
    contrast   as "own", but finished images, whose scores are the rewards, are judged by the groups of all pathways
    warm_up    as "own", and a pathway's first groups measure until EVIDENCE of them have unequal rewards: the trainer's
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final

import numpy as np

from benchmarks.arguments import count, exit_with
from trainer.algorithms.audit import Correlation
from trainer.algorithms.auto import DRAWN, EVIDENCE, AutoScreen, Estimate, Foresight, group_work
from trainer.algorithms.costs import Costs, Work

GROUP, STEPS, SHARE = 9, 10, 0.2  # rollouts, denoising steps, and the share of groups that measure
GROUPS: Final = (30, 60, 240)
ONE: Final = Work(1, 1, 1, 1, 1, 1)
UPDATES: Final = Work(0.005, 0.017, 0.005, 0.013, 0.013, 0.258)  # seconds measured on two CPU cores, 64 px
DRAWING: Final = Work(0.1, 1, 0.1, 0.1, 0.1, 0.1)  # denoising steps are dear
PATHWAYS: Final = ("visual", "textual", "none")
SHARES: Final = (0.4, 0.4, 0.2)
WAYS: Final = ("own", "pooled", "partial", "contrast", "warm_up")
Rhos = Mapping[int, float]  # the correlation of score and reward at each step before the last


@dataclass(frozen=True)
class World:
    """What scores foretell on each pathway.

    price  seconds of each part of the work
    right  the share of rewards that are 1, where all others are 0; None: rewards are Gaussian
    """

    rhos: Mapping[str, Rhos]
    price: Work
    right: float | None = None

    def seconds_of(self, pathway: str, step: int | None) -> float:
        """Return the seconds of a group that is screened at a step; None: of a plain one."""
        return Costs(self.price, ONE).of(group_work(step, GROUP, STEPS, has_answers=pathway != "none")) or math.nan

    def signal(self, pathway: str, step: int | None) -> float:
        """Return the true signal of a group that is screened at a step."""
        last = step == STEPS
        return 1.0 if step is None else true_signal(0.0 if last else self.rhos[pathway][step], self.right, last=last)

    def best(self, pathway: str) -> int | None:
        """Return the screen with the highest signal per second."""
        steps = (None, *self.rhos[pathway], STEPS)
        return max(steps, key=lambda step: self.signal(pathway, step) / self.seconds_of(pathway, step))


MEASURED: Final = {"textual": {0: 0.9, 2: 0.9, 5: 0.92}, "visual": {0: 0.0, 2: 0.1, 5: 0.3}, "none": {2: 0.0, 5: 0.15}}


def _alike(**rhos: float) -> dict[str, Rhos]:
    found = {int(step.removeprefix("at_")): rho for step, rho in rhos.items()}
    return {"textual": {0: 0.0, **found}, "visual": {0: 0.0, **found}, "none": found}


WORLDS: Final = {
    "as measured": World(MEASURED, UPDATES),
    "the same, two-valued": World(MEASURED, UPDATES, 0.15),
    "pathways differ": World({**MEASURED, "visual": {0: 0.0, 2: 0.2, 5: 0.95}}, DRAWING),
    "late previews": World(_alike(at_2=0.2, at_5=0.95), DRAWING),
    "early previews": World(_alike(at_2=0.8, at_5=0.85), DRAWING),
    "nothing pays": World(_alike(at_2=0.1, at_5=0.3), DRAWING),
}


def population(rng: np.random.Generator, rhos: Rhos, right: float | None) -> tuple[dict[int, list[float]], list[float]]:
    """Return the scores of a group at each step, and its rewards."""
    y = rng.standard_normal(DRAWN * GROUP)
    scores = {
        s: (rho * y + math.sqrt(1 - rho**2) * rng.standard_normal(DRAWN * GROUP)).tolist() for s, rho in rhos.items()
    }
    rewards = y if right is None else (y > statistics.NormalDist().inv_cdf(1 - right)).astype(float)
    return scores, rewards.tolist()


@cache
def true_signal(rho: float, right: float | None, *, last: bool, groups: int = 600) -> float:
    """Return the signal of a screen, from many groups."""
    rng, found = np.random.default_rng(0), list[tuple[float, float, float, float]]()
    for _ in range(groups):
        scores, rewards = population(rng, {0: rho}, right)
        one = Foresight().add(rewards if last else scores[0], rewards, GROUP, last=last)
        if one.correlation.groups:
            found.append((one.contrast, one.correlation.xy, one.correlation.xx, one.correlation.yy))
    contrast, xy, xx, yy = np.mean(found, 0)
    return float(1 + xy**2 / (xx * yy) * contrast)


def added(foresights: Sequence[Foresight]) -> Foresight:
    """Return the sums over the groups of several pathways."""
    found = Foresight()
    for one in foresights:
        a, b = found.correlation, one.correlation
        squares = tuple(map(sum, zip(a.squares, b.squares, strict=True)))
        both = Correlation(a.groups + b.groups, a.xy + b.xy, a.xx + b.xx, a.yy + b.yy, squares)
        found = Foresight(both, found.contrast + one.contrast, found.squares + one.squares)
    return found


def shrunk(own: Foresight, foresights: Sequence[Foresight]) -> Estimate:
    """Return the signal of a pathway, shrunk to the mean over pathways (DerSimonian and Laird 1986)."""
    signals = [one.signal for one in foresights if one.correlation.error is not None]
    if len(signals) < 2:
        return own.signal
    variance, value = np.array([max(one.error, 0.05) ** 2 for one in signals]), np.array([one.value for one in signals])
    weight = 1 / variance
    excess = float((weight * (value - (weight * value).sum() / weight.sum()) ** 2).sum()) - len(value) + 1
    between = max(0.0, excess / float(weight.sum() - (weight**2).sum() / weight.sum()))
    weight = 1 / (variance + between)
    mean, mean_variance = float((weight * value).sum() / weight.sum()), float(1 / weight.sum())
    if own.correlation.error is None:
        return Estimate(mean, math.sqrt(between + mean_variance))
    within = max(own.signal.error, 0.05) ** 2
    share = between / (between + within)
    error = math.sqrt(share * within + (1 - share) ** 2 * mean_variance)
    return Estimate(mean + share * (own.signal.value - mean), error)


@dataclass
class Run:
    """The screens of a run that decides in one way, and what its groups gave: sums of signal and seconds.

    moves   by pathway, the number of groups before its first move, and where it went
    """

    way: str
    world: World
    screens: dict[str, AutoScreen] = field(
        default_factory=lambda: {pathway: AutoScreen(None if pathway == "none" else 0) for pathway in PATHWAYS}
    )
    moves: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    signal: float = 0.0
    seconds: float = 0.0

    def add(self, pathway: str, measures: bool, rng: np.random.Generator, number: int) -> None:
        """Draw a group, and decide after a measured one."""
        screen, rhos = self.screens[pathway], self.world.rhos[pathway]
        measures = measures or (self.way == "warm_up" and not screen.has_evidence)
        step = STEPS if measures else screen.step
        self.signal += self.world.signal(pathway, step)
        self.seconds += self.world.seconds_of(pathway, step)
        if not measures:
            return
        self.seconds += len(rhos) * DRAWN * GROUP * (self.world.price.images + self.world.price.scores)
        self.screens[pathway] = screen.add(*population(rng, rhos, self.world.right), GROUP, STEPS)
        for name, before in self.screens.items():
            self.screens[name] = before.moved(self._gains(name))
            if self.screens[name].step != before.step:
                self.moves.setdefault(name, (number, self.screens[name].step))

    def _gains(self, pathway: str) -> dict[int | None, Estimate]:
        screen, measured = self.screens[pathway], sum(one.measured for one in self.screens.values())
        steps = (*self.world.rhos[pathway], STEPS)
        of_all = {s: [one.foresights[s] for one in self.screens.values() if s in one.foresights] for s in steps}
        own = {s: screen.foresights.get(s, Foresight()) for s in steps}
        if self.way in ("own", "warm_up"):
            signals = {s: one.signal for s, one in own.items()} if screen.has_evidence else {}
        elif measured < EVIDENCE:
            signals = {}
        elif self.way == "pooled":
            signals = {s: added(of_all[s]).signal for s in steps}
        elif self.way == "partial":
            signals = {s: shrunk(own[s], of_all[s]) for s in steps}
        elif screen.has_evidence or screen.step is None:
            known = own if screen.has_evidence else {}
            signals = {**{s: one.signal for s, one in known.items()}, STEPS: added(of_all[STEPS]).signal}
        else:
            signals = {}
        if not signals:
            return {}
        plain = self.world.seconds_of(pathway, None)
        gains: dict[int | None, Estimate] = {
            s: Estimate(*(part * plain / self.world.seconds_of(pathway, s) for part in one))
            for s, one in signals.items()
        }
        return {None: Estimate(1.0), **gains}


def compared(world: World, runs: int) -> list[list[str]]:
    """Return the cells of a table: a row for each way."""
    best = {pathway: world.best(pathway) for pathway in PATHWAYS}
    rows = []
    for way in WAYS:
        gains: dict[int, list[float]] = {groups: [] for groups in GROUPS}
        first, right = list[int](), list[bool]()
        for seed in range(runs):
            rng, run = np.random.default_rng(seed), Run(way, world)
            signal, seconds = 0.0, 0.0
            for number in range(max(GROUPS)):
                pathway = PATHWAYS[int(rng.choice(3, p=SHARES))]
                run.add(pathway, bool(rng.random() < SHARE), np.random.default_rng([seed, number]), number)
                signal += world.signal(pathway, best[pathway])
                seconds += world.seconds_of(pathway, best[pathway])
                if number + 1 in gains:
                    gains[number + 1].append(run.signal / run.seconds * seconds / signal)
            first += [number for number, _ in run.moves.values()]
            right += [step == best[pathway] for pathway, (_, step) in run.moves.items()]
        shown = [f"{statistics.fmean(values):.3f}" for values in gains.values()]
        moved = [f"{statistics.median(first):.0f}", f"{statistics.fmean(right):.0%}"] if first else ["none", ""]
        rows.append([way, *shown, *moved])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_moves",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=count, default=10, help="simulated runs of each way and world (10)")
    options = parser.parse_args(arguments)
    head = ["way", *(f"first {groups}" for groups in GROUPS), "groups before", "right"]
    for name, world in WORLDS.items():
        print(f"{name}: the best is {', '.join(f'{p} {world.best(p)}' for p in PATHWAYS)}")
        for row in [head, *compared(world, options.runs)]:
            print("  ".join(cell.rjust(13) for cell in row), flush=True)
    return 0


if __name__ == "__main__":
    exit_with(main)
