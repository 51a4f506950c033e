"""How the rollouts of a task are drawn, scored and chosen: by the settings, or as `screen.select` "auto" decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.algorithms.auto import DRAWN, AutoScreen
from trainer.settings import TrainerSettings
from trainer.types import Task

MEASURE = int.from_bytes(b"measure")  # a stream of random numbers; those of rollouts have their index there


@dataclass(frozen=True, slots=True)
class ScreenPlan:
    """How the rollouts of one task are drawn and chosen.

    drawn       how many are drawn at most
    kept        how many of them are finished
    step        the denoising step until which they are drawn before that
    is_scored   whether they are scored there; else all are finished
    threshold   the first whose score is above it are kept; None: the first
    both_tails  the best and the worst of all are kept, in place of the first
    pass_rate   the share that is expected to pass
    audit       the share of rejected ones that are finished to measure the screen
    measured    the steps at which all of them are scored on their way to their end; None: not to measure anything
    """

    drawn: int
    kept: int
    step: int = 0
    is_scored: bool = False
    threshold: float | None = None
    both_tails: bool = False
    pass_rate: float = 1.0
    audit: float = 0.0
    measured: tuple[int, ...] | None = None


Plan = Callable[[Task, TrainerSettings, Sequence[int]], ScreenPlan]  # of a task, and the key of its random numbers


def fixed_plan(task: Task, settings: TrainerSettings, threshold: float | None) -> ScreenPlan:
    """Return the plan of any `screen.select` but "auto". A screen by "known" terms needs an answer to screen by.

    Without a screen nothing is scored on the way, so images are drawn at once.
    """
    limits, step = settings.screen, settings.screening_step if task.draws else 0
    nothing_known = step == 0 and task.query is None
    threshold = None if nothing_known else threshold
    rate = 1.0 if threshold is None else limits.target_pass_rate
    if not limits.is_on or nothing_known:
        return ScreenPlan(limits.images, limits.images)
    both_tails, audit = limits.select == "best_and_worst", limits.audit
    return ScreenPlan(limits.max_previews, limits.images, step, True, threshold, both_tails, rate, audit)


def auto_plan(task: Task, settings: TrainerSettings, screen: AutoScreen, key: Sequence[int]) -> ScreenPlan:
    """Return the plan of a task whose pathway has this screen.

    A pathway's first groups measure all screens, until there is evidence; later a random share of the groups does, by
    numbers of the key. Every rollout of these is finished.
    """
    size, last, step = settings.screen.group_size, settings.policy.image_steps, screen.step
    if not screen.has_evidence or np.random.default_rng([*key, MEASURE]).random() < settings.screen.audit:
        steps = settings.predicted_steps if task.query is None else (0, *settings.predicted_steps)
        return ScreenPlan(DRAWN * size, DRAWN * size, measured=steps)
    if step is None:
        return ScreenPlan(size, size)
    if step == last:
        return ScreenPlan(DRAWN * size, DRAWN * size)
    return ScreenPlan(DRAWN * size, size, step, is_scored=True, both_tails=True)
