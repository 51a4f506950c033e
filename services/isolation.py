"""Run one batch and return one outcome per item: halve a batch that runs out of memory, bisect one that raises.

An item fails only if it raises in a run of its own, never because of the other items of its batch, even if some items
raise only together. In a batch of n items, finding one that raises costs at most ceil(log2 n) + 2 runs beyond the
first: one half at each level of the bisection, the suspect alone, and then all items set aside in one run. Finding k
such items costs at most k times as much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from services.batch_limit import BatchLimit
from synod import records
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.device_errors import is_out_of_memory
from synod.errors import CODES, InvalidRequest, NonFinite, ScorerFailed, SynodError

Run = Callable[[Sequence[ScoreItem]], Sequence[Outcome]]
Cost = Callable[[Sequence[ScoreItem]], int]  # how many images the items put on the device in one batch


def isolate(run: Run, items: Sequence[ScoreItem], limit: BatchLimit | None = None, cost: Cost = len) -> list[Outcome]:
    """Return one outcome per item, in order; a score that cannot be sent becomes a failure. Raises no Exception.

    A value that is not finite is NonFinite. A detail that is not JSON (NaN, an array, a float32) is ScorerFailed.

    `run` may raise, also for lack of memory (MemoryError, or a class named OutOfMemoryError, such as torch's). A wrong
    number or type of outcomes fails all items of the run, since outcomes cannot be assigned to items. `limit` is
    lowered after a batch that ran out of memory and raised after others.
    """
    work = _Work(run, items, cost)
    work.run(list(range(len(items))))
    assert len(work.outcomes) == len(items)
    if limit is not None:
        work.adjust(limit)
    return [work.outcomes[i] for i in range(len(items))]


class _Work:
    def __init__(self, run: Run, items: Sequence[ScoreItem], cost: Cost) -> None:
        self._run, self._items, self._cost = run, items, cost
        self._out_of_memory = False
        self._largest_run = 0  # images of the largest run that had enough memory
        self.outcomes: dict[int, Outcome] = {}

    def run(self, group: list[int]) -> None:
        """Run the items at the indices in `group` until each has an outcome."""
        while group:
            failure = self._attempt(group)
            if failure is None:
                return
            if len(group) == 1:
                self.outcomes[group[0]] = failure
                return
            group = self._halve(group) if failure is _OUT_OF_MEMORY else self._bisect(group)

    def adjust(self, limit: BatchLimit) -> None:
        """Lower `limit` if this batch ran out of memory, else raise it."""
        if not self._out_of_memory:
            limit.raise_after_success()
        elif all(outcome is not _OUT_OF_MEMORY for outcome in self.outcomes.values()):
            limit.lower(self._largest_run)

    def _halve(self, group: list[int]) -> list[int]:
        """Run the first half and return the second."""
        middle = len(group) // 2
        self.run(group[:middle])
        return group[middle:]

    def _bisect(self, group: list[int]) -> list[int]:
        """Find one item of `group` that raises, and return those that have no outcome yet."""
        aside: list[int] = []
        failure: ScoreFailure | None = None
        while len(group) > 1:
            middle = len(group) // 2
            left, right = group[:middle], group[middle:]
            failure = self._attempt(left)
            if failure is _OUT_OF_MEMORY and len(left) > 1:
                return self._halve(left) + right + aside
            group, aside = (right, aside) if failure is None else (left, right + aside)
        failure = failure or self._attempt(group)
        if failure is not None:
            self.outcomes[group[0]] = failure
        return aside

    def _attempt(self, group: list[int]) -> ScoreFailure | None:
        """Run `group` once: keep its outcomes and return None, or return the failure for what it raised.

        The exception is not returned, so that the memory that its frames hold is free before the next run.
        """
        items = [self._items[i] for i in group]
        try:
            outcomes = _validated(self._run(items), len(items))
        except SynodError as error:
            return ScoreFailure.of(error)
        except Exception as error:  # error boundary: whatever a model library raises becomes a typed failure
            if not is_out_of_memory(error):
                return ScoreFailure.of(ScorerFailed(f"the scorer raised {type(error).__name__}: {error}"))
            self._out_of_memory = True
            return _OUT_OF_MEMORY
        self._largest_run = max(self._largest_run, self._cost(items))
        self.outcomes.update(zip(group, outcomes, strict=True))
        return None


_OUT_OF_MEMORY = ScoreFailure.of(
    ScorerFailed("out of memory for this item alone; send a smaller image or fewer references, or free the device")
)


def _validated(outcomes: Sequence[Outcome], expected: int) -> list[Outcome]:
    """Return the outcomes of a run, or a failure for each item if they break the batch contract."""
    returned = list(outcomes)
    unexpected_types = sorted({type(o).__name__ for o in returned if not isinstance(o, Score | ScoreFailure)})
    if len(returned) == expected and not unexpected_types:
        return [_sendable(outcome) for outcome in returned]
    what = f"{unexpected_types} among its outcomes" if unexpected_types else f"{len(returned)} outcomes"
    return [ScoreFailure.of(ScorerFailed(f"the scorer returned {what} for {expected} items"))] * expected


def _sendable(outcome: Outcome) -> Outcome:
    """Return the outcome, or the failure of a score that no format carries: it must not count in a reward either.

    A failure with a code of the scorer's own becomes `scorer_failed`: codes are labels of metrics, which must be few.
    """
    if isinstance(outcome, ScoreFailure):
        if outcome.code in CODES:
            return outcome
        return ScoreFailure(ScorerFailed.code, f"{outcome.code}: {outcome.message}", outcome.retryable)
    if not math.isfinite(outcome.value):
        return ScoreFailure.of(NonFinite(f"the scorer produced {outcome.value}"))
    try:
        records.write(Score, outcome)
    except InvalidRequest as error:
        return ScoreFailure.of(ScorerFailed(f"the score cannot be sent: {error}"))
    return outcome
