"""Run one batch, return one outcome per item: halve a batch that runs out of memory, bisect one that raises.

An item fails only after it has raised alone, so it never fails because of its neighbours, not even in a batch whose
items raise only together. n items with one that raises cost at most ceil(log2 n) + 2 runs beyond the first: the search
runs one half per level and infers the other, then the suspect alone, then everything set aside in one run. k such items
cost at most k times that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from services.batch_limit import BatchLimit
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import NonFinite, ScorerFailed, SynodError

Run = Callable[[Sequence[ScoreItem]], Sequence[Outcome]]
Cost = Callable[[Sequence[ScoreItem]], int]  # images that items put on the device when they run together


def isolate(run: Run, items: Sequence[ScoreItem], limit: BatchLimit | None = None, cost: Cost = len) -> list[Outcome]:
    """Return one outcome per item, in order; values that are not finite become NonFinite failures. Raises no Exception.

    `run` may raise, run out of memory (MemoryError, or an error class named OutOfMemoryError, such as torch's), or
    return the wrong number or kind of outcomes: that fails the whole run, since they cannot be assigned to items.
    `limit` is adjusted after batches that ran out of memory; `cost` counts the images of items.
    """
    work = _Work(run, items, cost)
    work.settle(list(range(len(items))))
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

    def settle(self, group: list[int]) -> None:
        """Find an outcome for every index in `group`."""
        while group:
            failure = self._attempt(group)
            if failure is None:
                return
            if len(group) == 1:
                self.outcomes[group[0]] = failure
                return
            group = self._halve(group) if failure is _OUT_OF_MEMORY else self._bisect(group)

    def adjust(self, limit: BatchLimit) -> None:
        """Raise or lower `limit` by what this batch found."""
        if not self._out_of_memory:
            limit.raise_after_success()
        elif all(outcome is not _OUT_OF_MEMORY for outcome in self.outcomes.values()):
            limit.lower(self._largest_run)

    def _halve(self, group: list[int]) -> list[int]:
        """Settle the first half and return the second."""
        middle = len(group) // 2
        self.settle(group[:middle])
        return group[middle:]

    def _bisect(self, group: list[int]) -> list[int]:
        """Find one item of `group` that raises, and return those whose outcome is still open."""
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
        """Run `group`: keep its outcomes and return None, or return a failure for what it raised.

        The caller reacts after the exception is gone, together with the memory that its frames hold.
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


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means exhausted memory, by its class or its class's name and so without torch."""
    return isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


_OUT_OF_MEMORY = ScoreFailure.of(
    ScorerFailed("out of memory for this item alone; send a smaller image or fewer references, or free the device")
)


def _validated(outcomes: Sequence[Outcome], expected: int) -> list[Outcome]:
    """Return the outcomes of a run, as failures where it broke the batch contract."""
    found = list(outcomes)
    unexpected_types = sorted({type(o).__name__ for o in found if not isinstance(o, Score | ScoreFailure)})
    if len(found) == expected and not unexpected_types:
        return [_finite(outcome) for outcome in found]
    what = f"{unexpected_types} among its outcomes" if unexpected_types else f"{len(found)} outcomes"
    return [ScoreFailure.of(ScorerFailed(f"the scorer gave {what} for {expected} items"))] * expected


def _finite(outcome: Outcome) -> Outcome:
    if isinstance(outcome, Score) and not math.isfinite(outcome.value):
        return ScoreFailure.of(NonFinite(f"the scorer produced {outcome.value}"))
    return outcome
