"""Choose the tasks of each step from (seed, step)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from synod.errors import SettingsError
from trainer.scenarios import make_task
from trainer.types import ConceptProfile, Pathway, Prompt, Task

_MILLION: Final = 1_000_000
# Streams of random numbers; append new ones, so that the existing ones stay the same.
_COIN, _VISUAL, _TEXTUAL, _TAG, _GENEVAL, _REASON = range(6)


@dataclass(frozen=True)
class TaskSampler:
    """The sequence of training tasks; it holds no state, because a step's tasks follow from its number.

    Concept prompts come in pairs of one visual and one textual pathway, in random order (1:1 in Sync-R1): prompts that
    hint at a fact are textual, the others visual. `geneval_share` of all prompts are GenEval's, in rounds of one
    prompt of each tag. Each pool is shuffled for every pass over it. Raises SettingsError if a needed pool is
    empty.
    """

    prompts: Sequence[Prompt]
    concepts: Mapping[str, ConceptProfile]
    seed: int
    prompts_per_step: int = 1
    geneval_share: float = 0.0

    def __post_init__(self) -> None:
        pools = {"without a fact": self._visual, "with a fact": self._textual} if self._millionths < _MILLION else {}
        if self._millionths:
            pools["of GenEval"] = [p for pool in self._by_tag.values() for p in pool]
        empty = [name for name, pool in pools.items() if not pool]
        if empty:
            raise SettingsError(
                f"no prompt {' and none '.join(empty)} among {len(self.prompts)}, with geneval_share "
                f"{self.geneval_share:g}; add some or change the share"
            )

    def tasks(self, step: int) -> list[Task]:
        """Return the `prompts_per_step` tasks of step 0, 1, ..."""
        first = step * self.prompts_per_step
        return [self._task(index) for index in range(first, first + self.prompts_per_step)]

    @property
    def _millionths(self) -> int:
        return round(self.geneval_share * _MILLION)

    @property
    def _visual(self) -> list[Prompt]:
        return [p for p in self.prompts if p.concept is not None and p.fact is None]

    @property
    def _textual(self) -> list[Prompt]:
        return [p for p in self.prompts if p.concept is not None and p.fact is not None]

    @property
    def _by_tag(self) -> dict[str, list[Prompt]]:
        found: dict[str, list[Prompt]] = {}
        for prompt in self.prompts:
            if prompt.geneval is not None:
                found.setdefault(prompt.tag, []).append(prompt)
        return found

    def _task(self, index: int) -> Task:
        """Return task number `index` of the run; GenEval's tasks are spread evenly."""
        before, after = (n * self._millionths // _MILLION for n in (index, index + 1))
        pathway: Pathway = "none"
        if after > before:
            prompt = self._geneval(before)
        else:
            pair, second = divmod(index - before, 2)
            first_is_visual = bool(self._rng(_COIN, pair).integers(2))
            pathway = "visual" if first_is_visual != bool(second) else "textual"
            pool, stream = (self._visual, _VISUAL) if pathway == "visual" else (self._textual, _TEXTUAL)
            prompt = self._pick(pool, pair, stream)
        profile = None if prompt.concept is None else self.concepts[prompt.concept]
        return make_task(prompt, profile, pathway, self._rng(_REASON, index))

    def _geneval(self, index: int) -> Prompt:
        by_tag = self._by_tag
        names = sorted(by_tag)
        turn, place = divmod(index, len(names))
        tag = int(self._rng(_TAG, turn).permutation(len(names))[place])
        return self._pick(by_tag[names[tag]], turn, _GENEVAL, tag)

    def _pick(self, pool: Sequence[Prompt], index: int, *stream: int) -> Prompt:
        epoch, place = divmod(index, len(pool))
        return pool[int(self._rng(*stream, epoch).permutation(len(pool))[place])]

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])
