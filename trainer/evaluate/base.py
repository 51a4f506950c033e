"""The interface of a benchmark: what is drawn, and how scores become a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from synod.contracts import Outcome
from trainer.evaluate.estimate import Estimate
from trainer.types import Prompt


@dataclass(frozen=True, slots=True)
class Row:
    """Image number `image` (from 0) of prompt number `prompt`, its file, and the outcome of each scorer.

    A scorer without an outcome is as missing as one with a failure.
    """

    prompt: int
    image: int
    file: str
    outcomes: Mapping[str, Outcome]


@dataclass(frozen=True, slots=True)
class Table:
    """`cells[row][measure]`, in the order to print, and sentences that explain them."""

    cells: Mapping[str, Mapping[str, Estimate]]
    notes: tuple[str, ...] = ()


class Benchmark(Protocol):
    """A set of prompts with a way to summarise the scores of the images drawn from them."""

    @property
    def name(self) -> str:
        """The name on the command line."""
        ...

    @property
    def prompts(self) -> Sequence[Prompt]:
        """What to draw; a prompt's index is part of the key of its random numbers."""
        ...

    def reduce(self, rows: Sequence[Row]) -> Table:
        """Return the table of these images; a missing score is left out and counted, never 0."""
        ...


def spread(prompts: Sequence[Prompt], count: int | None) -> list[int]:
    """Return the indices of `count` prompts, evenly many of each tag as far as they go; None: of all prompts.

    The first prompts of each tag are taken, so that a larger count contains a smaller one.
    """
    if count is None or count >= len(prompts):
        return list(range(len(prompts)))
    place: dict[str, int] = {}
    turns = []
    for index, prompt in enumerate(prompts):
        turn = place[prompt.tag] = place.get(prompt.tag, -1) + 1
        turns.append((turn, index))
    return sorted(index for _, index in sorted(turns)[:count])
