"""What benchmarks of training measure on held-out images, each pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from trainer.evaluate.compare import Evaluation, Row, compare, matched, summary, valued
from trainer.evaluate.estimate import clustered

PRIMARY: Final = "image part"


def _concepts(row: Row) -> float | None:
    return row.image_part if row.key.startswith("<") else None  # a key begins with the concept, else with a tag


MEASURES: Final[Mapping[str, Callable[[Row], float | None]]] = {
    PRIMARY: lambda row: row.image_part,
    "image part of concepts": _concepts,
    "geneval soft": lambda row: row.components.get("geneval"),
    "geneval official": lambda row: row.official,
    "tier": lambda row: row.components.get("tier"),
    "right answers": lambda row: row.right,
    "reward": lambda row: row.reward,
}


@dataclass(frozen=True, slots=True)
class Change:
    """A measure of `n` images before and after training, and the mean difference of pairs.

    stderr            of the difference, as if all pairs were independent
    stderr_by_prompt  allowing for pairs of one of the `prompts` to be alike
    dropped           pairs without a value on both sides, of those with one on either
    """

    before: float
    after: float
    difference: float
    stderr: float | None
    stderr_by_prompt: float | None
    n: int
    prompts: int
    dropped: int

    @property
    def error(self) -> float | None:
        """The larger of both errors: a few prompts can make the second one too small by chance."""
        found = [error for error in (self.stderr, self.stderr_by_prompt) if error is not None]
        return max(found, default=None)


def changes(before: Evaluation, after: Evaluation) -> dict[str, Change]:
    """Return the change of each of MEASURES that has a pair.

    image part              the reward without its terms that were fixed before drawing: GenEval's soft score of
                            GenEval's prompts, the terms of image scorers (DER, FER, BER) of the concepts' prompts
    image part of concepts  that of the concepts' prompts alone
    geneval soft, official  of GenEval's prompts alone, the second by GenEval's own rules
    tier, right answers     of the answers
    reward                  all of it

    Raises SettingsError if prompts or settings of the two differ.
    """
    pairs = matched(before, after)
    found = {}
    for name, value in MEASURES.items():
        own = [(a, b) for a, b in pairs if value(a) is not None or value(b) is not None]
        whole = compare(own, value)
        if whole.before.mean is None or whole.after.mean is None or whole.difference is None:
            continue
        moved = [(prompt, b - a) for prompt, a, b in valued(own, value)]
        by_prompt = clustered(moved)
        found[name] = Change(
            whole.before.mean,
            whole.after.mean,
            whole.difference,
            summary(difference for _, difference in moved).stderr,
            by_prompt.stderr,
            whole.n,
            by_prompt.prompts,
            whole.dropped,
        )
    return found


def to_document(found: Mapping[str, Change]) -> dict[str, dict[str, Any]]:
    """Return changes as JSON values."""
    return {name: asdict(change) for name, change in found.items()}


def line(name: str, change: Change) -> str:
    """Return a change as people read it."""
    error = "" if change.error is None else f" ± {change.error:.3f}"
    return f"{name:<24}{change.before:.3f} -> {change.after:.3f}  {change.difference:+.3f}{error}  n {change.n}"
