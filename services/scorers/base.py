"""What a scorer is, and the batch law that holds for all of them.

The law: same length, same order, one outcome an item; every value finite; a poison item fails alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import MissingInput, NonFinite, ScorerFailed, SynodError

Need = Literal["image", "prompt", "references", "reasoning", "geneval"]

_PRESENT: dict[Need, Callable[[ScoreItem], bool]] = {
    "image": lambda item: item.image is not None,
    "prompt": lambda item: bool(item.prompt and item.prompt.strip()),
    "references": lambda item: bool(item.references),
    "reasoning": lambda item: item.reasoning is not None,
    "geneval": lambda item: item.geneval is not None,
}


@dataclass(frozen=True, slots=True)
class ScorerSpec:
    """A scorer's public face, served by `GET /v1/scorers`.

    `low`, `high` bound the value; higher is better. `source` names paper and equation.
    """

    name: str
    needs: tuple[Need, ...]
    low: float
    high: float
    source: str
    summary: str


class Scorer(Protocol):
    """`score` gets items whose needs are present and pixels decoded; it may raise, and then the batch is bisected."""

    spec: ScorerSpec

    def score(self, items: Sequence[ScoreItem]) -> Sequence[Outcome]: ...


def score_batch(scorer: Scorer, items: Sequence[ScoreItem]) -> list[Outcome]:
    """Run `scorer` over `items` under the batch law. Never raises for an item's sake.

    Items that lack a need fail without reaching the scorer. When a batch raises it is halved until the items that
    raise alone are found: n items with k poisoned ones cost at most about 2k log2(n) extra calls.
    """
    outcomes: list[Outcome | None] = [_missing(scorer.spec, item) for item in items]
    ready = [i for i, outcome in enumerate(outcomes) if outcome is None]
    for i, outcome in zip(ready, _bisect(scorer, [items[i] for i in ready]), strict=True):
        outcomes[i] = outcome
    assert all(outcome is not None for outcome in outcomes)
    return [outcome for outcome in outcomes if outcome is not None]


def _missing(spec: ScorerSpec, item: ScoreItem) -> ScoreFailure | None:
    absent = [need for need in spec.needs if not _PRESENT[need](item)]
    if not absent:
        return None
    return ScoreFailure.of(MissingInput(f"scorer '{spec.name}' needs {', '.join(absent)}; the item has none"))


def _bisect(scorer: Scorer, items: Sequence[ScoreItem]) -> list[Outcome]:
    if not items:
        return []
    try:
        outcomes = list(scorer.score(items))
    except SynodError as error:
        if len(items) == 1:
            return [ScoreFailure.of(error)]
    except Exception as error:  # a rim: whatever a model library raises becomes a typed failure
        if len(items) == 1:
            return [
                ScoreFailure.of(ScorerFailed(f"scorer '{scorer.spec.name}' raised {type(error).__name__}: {error}"))
            ]
    else:
        if len(outcomes) != len(items):
            broken = ScorerFailed(f"scorer '{scorer.spec.name}' gave {len(outcomes)} outcomes for {len(items)} items")
            return [ScoreFailure.of(broken)] * len(items)
        return [_finite(scorer.spec, outcome) for outcome in outcomes]
    middle = len(items) // 2
    return _bisect(scorer, items[:middle]) + _bisect(scorer, items[middle:])


def _finite(spec: ScorerSpec, outcome: Outcome) -> Outcome:
    if isinstance(outcome, Score) and not math.isfinite(outcome.value):
        return ScoreFailure.of(NonFinite(f"scorer '{spec.name}' produced {outcome.value}"))
    return outcome
