"""Count requests, scores and rewards in the metrics."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from services.backends import ScorerSpec
from services.observability import metrics
from services.observability.reward_health import groups_of
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import PayloadTooLarge, Unavailable, UnknownImage


@contextmanager
def counted_request() -> Iterator[None]:
    """Time a request, and count it by its error code if it is refused before any work."""
    try:
        with metrics.STAGE_SECONDS.labels("total").time():
            yield
    except (Unavailable, UnknownImage, PayloadTooLarge) as refused:
        metrics.REJECTS.labels(refused.code).inc()
        raise


def count_items(items: Sequence[ScoreItem]) -> None:
    """Count the admitted items and their images."""
    metrics.ITEMS.inc(len(items))
    metrics.IMAGES.inc(sum(len(item.images()) for item in items))


def count_scores(scorer: str, outcomes: Collection[Outcome]) -> None:
    """Count a scorer's scores, and its failures by code."""
    metrics.SCORES.labels(scorer).inc(sum(isinstance(outcome, Score) for outcome in outcomes))
    for outcome in outcomes:
        if isinstance(outcome, ScoreFailure):
            metrics.FAILURES.labels(scorer, outcome.code).inc()


def count_rewards(
    items: Sequence[ScoreItem], scores: Sequence[Mapping[str, Outcome]], specs: Mapping[str, ScorerSpec]
) -> None:
    """Add a finished request to the reward health of its scorers. `scores` are by item, then by scorer."""
    groups = groups_of(items)
    for name in {name for found in scores for name in found}:
        scored = [i for i, found in enumerate(scores) if name in found]
        place = {i: k for k, i in enumerate(scored)}
        within = [[place[i] for i in group if i in place] for group in groups]
        outcomes = [scores[i][name] for i in scored]
        metrics.count_rewards(name, outcomes, within, specs[name].low, specs[name].high)
