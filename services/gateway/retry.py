"""Call one scorer until the deadline: retry what a lost or a full replica did not score.

Only admitted work gets here, so a replica is full just for a moment, as when it still works for a gateway that died.
"""

from __future__ import annotations

import asyncio
import logging
import time

from services.backends import ScorerBackend, Staged
from services.observability import metrics, tracing
from synod.contracts import Outcome, ScoreFailure
from synod.errors import Overloaded, ReplicaLost, ScorerFailed, SynodError, Unavailable
from synod.retry import RetryPolicy

log = logging.getLogger("synod.gateway")
BACKOFF = RetryPolicy(base_s=0.1, max_s=1.0)
RETRIED_CODES = frozenset({Unavailable.code, ReplicaLost.code, Overloaded.code})
RESPONSE_MARGIN_S = 0.1  # a replica responds this long before the deadline, so that its scores still arrive in time


async def score_with_retries(
    backend: ScorerBackend, scorer: str, staged: Staged, indexes: list[int], ends_s: float, outcomes: dict[int, Outcome]
) -> None:
    """Add an outcome for each index into the staged items to `outcomes`, as soon as it is known. Raises nothing.

    No work starts after `ends_s` (monotonic); work that has started by then may end later. Pauses between the calls
    grow, with jitter, and each retry is an event of the current span.
    """
    attempt = 0
    with metrics.SCORER_SECONDS.labels(scorer).time():
        while True:
            outcomes.update(zip(indexes, await _call(backend, scorer, staged, indexes, ends_s), strict=True))
            indexes = [i for i in indexes if _is_retried(outcomes[i])]
            pause_s = BACKOFF.backoff_s(attempt)
            if not indexes or time.monotonic() + pause_s >= ends_s:
                return
            metrics.RETRIES.labels(scorer).inc()
            tracing.current().event("retry", items=len(indexes))
            await asyncio.sleep(pause_s)
            attempt += 1


async def _call(
    backend: ScorerBackend, scorer: str, staged: Staged, indexes: list[int], ends_s: float
) -> list[Outcome]:
    """Call the backend once and return one outcome per index, whatever it raises."""
    left_s = ends_s - time.monotonic()
    error: SynodError
    try:
        outcomes = await backend.score(scorer, staged, indexes, left_s - min(RESPONSE_MARGIN_S, left_s / 10))
        if len(outcomes) == len(indexes):
            return outcomes
        error = ScorerFailed(f"scorer '{scorer}' returned {len(outcomes)} outcomes for {len(indexes)} items")
    except SynodError as known:
        error = known
    except Exception as unknown:  # an error boundary: the failure of one scorer must not lose the scores of the others
        log.exception("scorer '%s' failed", scorer)
        error = ScorerFailed(f"scorer '{scorer}' failed with {type(unknown).__name__}")
    return [ScoreFailure.of(error)] * len(indexes)


def _is_retried(outcome: Outcome) -> bool:
    return isinstance(outcome, ScoreFailure) and outcome.code in RETRIED_CODES
