"""One scorer, asked: until the deadline a lost or a full replica is asked again, and every index gets an outcome.

What comes here was admitted. A replica is full then for a moment only, as when it still works for a gateway that died.
"""

from __future__ import annotations

import asyncio
import logging
import time

from services.backends import ScorerBackend, Staged
from services.observability import metrics
from services.observability.tracing import NO_SPAN, Span
from synod.contracts import Outcome, ScoreFailure
from synod.errors import Overloaded, ReplicaLost, ScorerFailed, SynodError, Unavailable
from synod.retry import RetryPolicy

log = logging.getLogger("synod.gateway")
BACKOFF = RetryPolicy(base_s=0.1, max_s=1.0)
WORTH_ASKING_AGAIN = frozenset({Unavailable.code, ReplicaLost.code, Overloaded.code})
ANSWER_MARGIN_S = 0.1  # a replica answers this long before the deadline, so that what it finished still arrives


async def score_with_retries(
    backend: ScorerBackend,
    scorer: str,
    staged: Staged,
    indexes: list[int],
    ends_s: float,
    outcomes: dict[int, Outcome],
    span: Span = NO_SPAN,
) -> None:
    """Add the outcome of each index into the staged items to `outcomes`, as they become known. Raises nothing.

    No work begins after `ends_s` (monotonic); what has begun by then may end later. What a lost replica took along, or
    a full one refused, is asked again, after growing, jittered pauses: an event of `span`.
    """
    attempt = 0
    with metrics.SCORER_SECONDS.labels(scorer).time():
        while True:
            answers = await _call(backend, scorer, staged, indexes, ends_s - time.monotonic(), span.traceparent)
            outcomes.update(zip(indexes, answers, strict=True))
            indexes = [i for i in indexes if _worth_asking_again(outcomes[i])]
            pause_s = BACKOFF.backoff_s(attempt)
            if not indexes or time.monotonic() + pause_s >= ends_s:
                return
            metrics.RETRIES.labels(scorer).inc()
            span.event("retry", items=len(indexes))
            await asyncio.sleep(pause_s)
            attempt += 1


async def _call(
    backend: ScorerBackend, scorer: str, staged: Staged, indexes: list[int], left_s: float, traceparent: str | None
) -> list[Outcome]:
    """One call of the backend; whatever becomes of it, one outcome per index."""
    error: SynodError
    try:
        margin_s = min(ANSWER_MARGIN_S, left_s / 10)
        answers = await backend.score(scorer, staged, indexes, left_s - margin_s, traceparent)
        if len(answers) == len(indexes):
            return answers
        error = ScorerFailed(f"scorer '{scorer}' gave {len(answers)} outcomes for {len(indexes)} items")
    except SynodError as known:
        error = known
    except Exception as unknown:  # a rim: one scorer's trouble must not take the others' answers along
        log.exception("scorer '%s' failed", scorer)
        error = ScorerFailed(f"scorer '{scorer}' failed with {type(unknown).__name__}")
    return [ScoreFailure.of(error)] * len(indexes)


def _worth_asking_again(outcome: Outcome) -> bool:
    return isinstance(outcome, ScoreFailure) and outcome.code in WORTH_ASKING_AGAIN
