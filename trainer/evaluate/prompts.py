"""Any prompts, and the mean of each scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from synod.contracts import Outcome, Score
from trainer.evaluate.base import Row, Table
from trainer.evaluate.estimate import clustered
from trainer.types import Prompt


@dataclass(frozen=True)
class Prompts:
    """The benchmark of a file of prompts: one row for each scorer."""

    prompts: Sequence[Prompt]
    scorers: Sequence[str]
    name: str = "prompts"

    def reduce(self, rows: Sequence[Row]) -> Table:
        """Return the mean of each scorer over the images that it scored."""
        return Table(
            {
                name: {"mean": clustered((row.prompt, _value(row.outcomes.get(name))) for row in rows)}
                for name in self.scorers
            }
        )


def _value(outcome: Outcome | None) -> float | None:
    return outcome.value if isinstance(outcome, Score) else None
