"""GenEval's prompts before and after each stage (UniCTokens, Fig. 7): what a concept costs that they do not name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.personalization.measure import Figures, drawn
from embedded import world
from embedded.makers.metrics import scores
from services.scorers import registry
from services.settings import load as load_service
from synod.contracts import Pixels, ScoreItem
from trainer.policy.show_o.policy import ShowO

PER_TASK: Final = 80  # prompts of each of the six tasks
Judge = Callable[[Sequence[ScoreItem]], list[bool]]


def judge(settings: Path) -> Judge:
    """Return what says which images are right by GenEval's own rules, from the settings of a service."""
    scorer = registry.build("geneval", load_service(settings, {}).scorers["geneval"])
    return lambda items: [bool(score.detail["official"]) for score in scores(scorer, items)]


class General:
    """Compares a policy with itself before training: the same prompts of GenEval, and the same random numbers."""

    def __init__(self, policy: ShowO, right: Judge, seed: int, per_task: int = PER_TASK) -> None:
        rng = np.random.default_rng([52, seed])
        pools = [world.POOLS[task, "heldout"] for task in world.GENEVAL_TASKS]
        self._prompts = [pool[int(i)] for pool in pools for i in rng.integers(len(pool), size=per_task)]
        self._judge, self._seed = right, seed
        self._images = self._drawn(policy)
        self._before = self._right(self._images, range(len(self._images)))

    def measure(self, policy: ShowO) -> Figures:
        """Return GenEval, its change with the error over prompts, and the share of images that are bitwise equal.

        An image that did not change by a bit keeps its verdict.
        """
        images = self._drawn(policy)
        changed = [i for i, (a, b) in enumerate(zip(images, self._images, strict=True)) if not np.array_equal(a, b)]
        after = self._before.copy()
        after[changed] = self._right(images, changed)
        change = after - self._before
        return {
            "geneval": float(after.mean()),  # as many prompts of each task: also the mean over tasks
            "geneval_change": float(change.mean()),
            "geneval_change_error": float(change.std(ddof=1) / np.sqrt(len(change))),
            "geneval_equal": 1 - len(changed) / len(images),
        }

    def _right(self, images: Sequence[Pixels], places: Sequence[int]) -> NDArray[np.float64]:
        return np.array(self._judge([ScoreItem(images[i], geneval=self._prompts[i].geneval) for i in places]), float)

    def _drawn(self, policy: ShowO) -> list[Pixels]:
        return drawn(policy, [one.text for one in self._prompts], self._seed)
