"""The Scorer protocol and the batch contract.

The contract: as many outcomes as items, in the same order; every value is finite; an item that fails fails alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

from services.isolation import isolate
from synod.contracts import Origin, Outcome, ScoreFailure, ScoreItem
from synod.errors import MissingInput, ScorerFailed

Need = Literal["image", "prompt", "references", "reasoning", "geneval", "source_prompt"]

_PRESENT: dict[Need, Callable[[ScoreItem], bool]] = {
    "image": lambda item: item.image is not None,
    "prompt": lambda item: bool(item.prompt and item.prompt.strip()),
    "references": lambda item: bool(item.references),
    "reasoning": lambda item: item.reasoning is not None,
    "geneval": lambda item: item.geneval is not None,
    "source_prompt": lambda item: bool(item.source_prompt and item.source_prompt.strip()),
}


@dataclass(frozen=True, slots=True)
class ScorerSpec:
    """Description of a scorer, served by `GET /v1/scorers`.

    `low`, `high` bound the value; higher is better. `source` names paper and equation. `origin` is all that a value
    depends on besides the item (models, preprocessing, rules); None when unknown, and then no score is reused.
    `sized`: its models work at the image's own size, so a batch is bounded by pixels (`services.backends`).
    """

    name: str
    needs: tuple[Need, ...]
    low: float
    high: float
    source: str
    summary: str
    origin: Origin | None = None
    sized: bool = False


class Scorer(Protocol):
    """Scores items that have what `spec.needs` names, with decoded pixels. If `score` raises, the batch is bisected."""

    spec: ScorerSpec

    def score(self, items: Sequence[ScoreItem]) -> Sequence[Outcome]: ...


def run_batch(scorer: Scorer, items: Sequence[ScoreItem]) -> list[Outcome]:
    """Run `scorer` over `items`; an item that lacks a need fails without reaching it. Raises what `score` raises."""
    absent = [_missing(scorer.spec, item) for item in items]
    ready = [item for item, failure in zip(items, absent, strict=True) if failure is None]
    measured = list(scorer.score(ready)) if ready else []
    if len(measured) != len(ready):
        broken = ScorerFailed(f"scorer '{scorer.spec.name}' gave {len(measured)} outcomes for {len(ready)} items")
        measured = [ScoreFailure.of(broken)] * len(ready)
    found = iter(measured)
    return [next(found) if failure is None else failure for failure in absent]


def score_batch(scorer: Scorer, items: Sequence[ScoreItem]) -> list[Outcome]:
    """Run `scorer` over `items` under the batch contract (`services.isolation`). An item's error is its outcome."""
    return isolate(partial(run_batch, scorer), items)


def _missing(spec: ScorerSpec, item: ScoreItem) -> ScoreFailure | None:
    absent = [need for need in spec.needs if not _PRESENT[need](item)]
    if not absent:
        return None
    return ScoreFailure.of(MissingInput(f"scorer '{spec.name}' needs {', '.join(absent)}; the item has none"))
