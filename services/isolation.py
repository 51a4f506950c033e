"""One batch -> one outcome an item, whatever the run does: short of memory it is halved, poisoned it is bisected.

An item fails only after it has raised alone, so no neighbour fails with it, not even in a batch whose items raise only
together. n items with one that raises cost at most ceil(log2 n) + 2 runs beyond the first: the search runs one half a
level and infers the other, then the suspect alone, then all that was set aside in one run. k such items cost at most
k times that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import NonFinite, ScorerFailed, SynodError

Run = Callable[[Sequence[ScoreItem]], Sequence[Outcome]]
CLEAN_BATCHES = 64


class BatchLimit:
    """Images that a batch may hold: `most`, unless one ran out of memory lately.

    Such a batch lowers the limit to the largest of its runs that had memory enough. After CLEAN_BATCHES batches in a
    row that did not run out, the limit doubles, up to `most`: once the device is free again, the way back costs at most
    one failed run in CLEAN_BATCHES. An item that runs out alone is itself to blame, and lowers nothing.
    """

    def __init__(self, most: int) -> None:
        self.images = most
        self._most = most
        self._clean = 0

    def enough(self) -> None:
        """A batch had memory enough."""
        self._clean += 1
        if self._clean >= CLEAN_BATCHES:
            self.images, self._clean = min(self._most, 2 * self.images), 0

    def lower(self, images: int) -> None:
        """A batch ran out of memory, and its largest run that did not held `images`."""
        self.images, self._clean = max(1, min(self.images, images)), 0


def one_image(item: ScoreItem) -> int:
    """The usual cost of an item, whatever it holds."""
    return 1


def isolate(
    run: Run, items: Sequence[ScoreItem], limit: BatchLimit | None = None, cost: Callable[[ScoreItem], int] = one_image
) -> list[Outcome]:
    """One outcome an item, in order; values that are not finite become NonFinite failures. Raises no Exception.

    `run` may raise, run out of memory (MemoryError, or an error class named OutOfMemoryError, such as torch's), or
    break the batch contract by the number or kind of its outcomes, which fails the whole run, since nothing says whose
    they are. `limit` learns from batches that ran out of memory; `cost` counts an item's images.
    """
    work = _Work(run, items, cost)
    work.settle(list(range(len(items))))
    assert len(work.outcomes) == len(items)
    if limit is not None:
        work.teach(limit)
    return [work.outcomes[i] for i in range(len(items))]


class _Work:
    def __init__(self, run: Run, items: Sequence[ScoreItem], cost: Callable[[ScoreItem], int]) -> None:
        self._run, self._items, self._cost = run, items, cost
        self._short = False
        self._fitted = 0  # images of the largest run that had memory enough
        self.outcomes: dict[int, Outcome] = {}

    def settle(self, group: list[int]) -> None:
        """Find an outcome for every index of `group`."""
        while group:
            failure = self._attempt(group)
            if failure is None:
                return
            if len(group) == 1:
                self.outcomes[group[0]] = failure
                return
            group = self._halve(group) if failure is _SHORT else self._bisect(group)

    def teach(self, limit: BatchLimit) -> None:
        """Tell `limit` how this batch fared."""
        if not self._short:
            limit.enough()
        elif all(outcome is not _SHORT for outcome in self.outcomes.values()):
            limit.lower(self._fitted)

    def _halve(self, group: list[int]) -> list[int]:
        """Settle the first half and give back the second."""
        middle = len(group) // 2
        self.settle(group[:middle])
        return group[middle:]

    def _bisect(self, group: list[int]) -> list[int]:
        """Find one item of a group that raised, and give back those whose outcome is still open."""
        aside: list[int] = []
        failure: ScoreFailure | None = None
        while len(group) > 1:
            middle = len(group) // 2
            left, right = group[:middle], group[middle:]
            failure = self._attempt(left)
            if failure is _SHORT and len(left) > 1:
                return self._halve(left) + right + aside
            group, aside = (right, aside) if failure is None else (left, right + aside)
        failure = failure or self._attempt(group)
        if failure is not None:
            self.outcomes[group[0]] = failure
        return aside

    def _attempt(self, group: list[int]) -> ScoreFailure | None:
        """Run a group: its outcomes are kept, or the failure is told that stands for what was raised.

        What to do about it is the caller's, after the exception is gone with the memory that its frames hold.
        """
        items = [self._items[i] for i in group]
        try:
            outcomes = _validated(self._run(items), len(items))
        except SynodError as error:
            return ScoreFailure.of(error)
        except Exception as error:  # a rim: whatever a model library raises becomes a typed failure
            if not short_of_memory(error):
                return ScoreFailure.of(ScorerFailed(f"the scorer raised {type(error).__name__}: {error}"))
            self._short = True
            return _SHORT
        self._fitted = max(self._fitted, sum(map(self._cost, items)))
        self.outcomes.update(zip(group, outcomes, strict=True))
        return None


def short_of_memory(error: BaseException) -> bool:
    """Whether `error` tells of exhausted memory: recognised by its class or its class's name, so without torch."""
    return isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


_SHORT = ScoreFailure.of(
    ScorerFailed("out of memory for this item alone; send a smaller image or fewer references, or free the device")
)


def _validated(outcomes: Sequence[Outcome], expected: int) -> list[Outcome]:
    """The outcomes of a run with every breach turned into a failure."""
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
