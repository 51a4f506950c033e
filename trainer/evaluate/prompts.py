"""Any prompts, and the mean of each scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from synod.contracts import Outcome, Score
from trainer.evaluate.base import Row, Table
from trainer.evaluate.estimate import Estimate, clustered
from trainer.types import Prompt


@dataclass(frozen=True)
class Prompts:
    """The benchmark of a file of prompts: one row for each scorer, and for each of its tags if there are several."""

    prompts: Sequence[Prompt]
    scorers: Sequence[str]
    name: str = "prompts"

    def reduce(self, rows: Sequence[Row]) -> Table:
        """Return the mean of each scorer over the images that it scored."""
        tags = list(dict.fromkeys(self.prompts[row.prompt].tag for row in rows))
        cells = {}
        for name in self.scorers:
            cells[name] = {"mean": _mean(rows, name)}
            if len(tags) > 1:
                for tag in tags:
                    own = [row for row in rows if self.prompts[row.prompt].tag == tag]
                    cells[f"{name}: {tag}"] = {"mean": _mean(own, name)}
        return Table(cells)


def _mean(rows: Sequence[Row], name: str) -> Estimate:
    return clustered((row.prompt, _value(row.outcomes.get(name))) for row in rows)


def _value(outcome: Outcome | None) -> float | None:
    return outcome.value if isinstance(outcome, Score) else None
