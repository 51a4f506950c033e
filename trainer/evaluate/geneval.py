"""GenEval (Ghosh et al. 2023): 553 prompts of six tasks; the share of images that GenEval's own rules find right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from synod.contracts import Outcome, Score
from synod.errors import SettingsError
from trainer.evaluate.base import Row, Table
from trainer.evaluate.estimate import Estimate, clustered, mean_of
from trainer.types import Prompt

PROMPTS: Final = Path(__file__).with_name("geneval_prompts.jsonl")  # of djghosh13/geneval, under its MIT licence
SCORER: Final = "geneval"
RULE_SETS: Final = ("official", "strict", "soft")
Values = Sequence[tuple[int, float | None]]  # (number of the prompt, value of an image)
OVERALL, IMAGES, ANY = "overall", "all images", "prompts, any image"


@dataclass(frozen=True)
class GenEval:
    """The benchmark on prompts with GenEval's metadata. `scorer` is the name of the service's scorer of that kind."""

    prompts: Sequence[Prompt]
    scorer: str = SCORER
    name: str = "geneval"

    def __post_init__(self) -> None:
        if not self.prompts or any(prompt.geneval is None for prompt in self.prompts):
            raise SettingsError(
                "the suite geneval needs prompts with GenEval's metadata (tag, include, exclude); give --prompts such "
                "a file, or use --suite prompts"
            )

    def reduce(self, rows: Sequence[Row]) -> Table:
        """Return the shares by task, and three summaries, as GenEval's summary_scores.py prints them.

        overall             the mean of the tasks' shares, which is GenEval's score
        all images          the share of right images
        prompts, any image  the share of prompts with at least one right image
        """
        tags = list(dict.fromkeys(self.prompts[row.prompt].tag for row in rows))
        by_tag = {tag: [row for row in rows if self.prompts[row.prompt].tag == tag] for tag in tags}
        cells = {tag: self._measures(clustered, found) for tag, found in by_tag.items()}
        cells[OVERALL] = {name: mean_of([cells[tag][name] for tag in tags]) for name in RULE_SETS}
        cells[IMAGES] = self._measures(clustered, rows)
        cells[ANY] = self._measures(_any, rows, RULE_SETS[:2])
        return Table(
            cells,
            (
                "official: share of images that are right by GenEval's own rules; overall: the mean of the tasks, "
                "which is GenEval's score",
                "strict: exact counts, and every object as asked; soft: partial credit (docs/scorers.md)",
            ),
        )

    def _measures(
        self, estimate: Callable[[Values], Estimate], rows: Sequence[Row], rule_sets: Sequence[str] = RULE_SETS
    ) -> dict[str, Estimate]:
        return {
            name: estimate([(row.prompt, verdict(row.outcomes.get(self.scorer), name)) for row in rows])
            for name in rule_sets
        }


def verdict(outcome: Outcome | None, rule_set: str) -> float | None:
    """Return what a rule set says of an image, in [0, 1]; None without a score.

    Raises SettingsError for a score without the four verdicts, which another kind of scorer gave.
    """
    if not isinstance(outcome, Score):
        return None
    value = outcome.detail.get(rule_set) if isinstance(outcome.detail, Mapping) else None
    if not isinstance(value, int | float):
        raise SettingsError(
            f"a score holds no verdict '{rule_set}' of GenEval's rules; name a scorer of kind geneval with --scorers"
        )
    return float(value)


def _any(values: Values) -> Estimate:
    """Return the share of prompts with a right image; a prompt with none that lacks a score is missing."""
    by_prompt: dict[int, list[float | None]] = {}
    for prompt, value in values:
        by_prompt.setdefault(prompt, []).append(value)
    best = {prompt: 1.0 if 1.0 in found else None if None in found else 0.0 for prompt, found in by_prompt.items()}
    return clustered(best.items())
