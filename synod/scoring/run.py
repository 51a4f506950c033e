"""Ask a service about many items: in batches, some at once, results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from synod.client import SynodClient
from synod.contracts import ItemResult, ScoreItem, ScoreRequest
from synod.errors import InvalidRequest, PermissionDenied, SynodError, Unauthenticated, UnknownImage, UnknownScorer
from synod.scoring.inputs import Loaded, Source
from synod.values import failed_response

BATCH_ITEMS: Final = 32
BATCHES_AT_ONCE: Final = 4
_NO_ITEMS_FAULT: Final = (UnknownScorer, Unauthenticated, PermissionDenied)  # no smaller batch does better


@dataclass(frozen=True, slots=True)
class Scored:
    """A source and what came of it; `result` is None for one that was skipped."""

    loaded: Loaded
    result: ItemResult | None


def score_all(
    client: SynodClient,
    sources: Iterable[Source],
    asked: ScoreRequest,
    skip: Callable[[Loaded], bool] = lambda loaded: False,
) -> Iterator[Scored]:
    """Every source once, in order; `asked` is the request without its items. `skip` is called in order too.

    An item that makes its whole request invalid fails alone. Raises the SynodError of a batch that came to nothing,
    after the results of the others that were under way.
    """
    pending: deque[Future[list[Scored]]] = deque()
    left, failed = iter(sources), None
    with ThreadPoolExecutor(BATCHES_AT_ONCE, "score") as pool:
        while pending or failed is None:
            while failed is None and len(pending) < BATCHES_AT_ONCE and (batch := list(islice(left, BATCH_ITEMS))):
                loaded = list(pool.map(Source.load, batch))
                pending.append(pool.submit(_score, client, [(one, skip(one)) for one in loaded], asked))
            if not pending:
                return
            try:
                yield from pending.popleft().result()
            except SynodError as error:
                failed = failed or error
    assert failed is not None
    raise failed


def _score(client: SynodClient, batch: list[tuple[Loaded, bool]], asked: ScoreRequest) -> list[Scored]:
    items = [one.item for one, skipped in batch if not skipped and isinstance(one.item, ScoreItem)]
    results = iter(_ask(client, tuple(items), asked))
    return [Scored(one, None if skipped else _result(one, results, asked)) for one, skipped in batch]


def _result(loaded: Loaded, results: Iterator[ItemResult], asked: ScoreRequest) -> ItemResult:
    if isinstance(loaded.item, ScoreItem):
        return next(results)
    return _failed(loaded.item, asked)


def _ask(client: SynodClient, items: tuple[ScoreItem, ...], asked: ScoreRequest) -> list[ItemResult]:
    """One result per item. A request that is invalid as a whole is halved until the item at fault is alone."""
    if not items:
        return []
    try:
        return list(client.score(replace(asked, items=items)).results)
    except _NO_ITEMS_FAULT:
        raise
    except (InvalidRequest, UnknownImage) as error:
        if len(items) == 1:
            return [_failed(error, asked)]
    half = len(items) // 2
    return [*_ask(client, items[:half], asked), *_ask(client, items[half:], asked)]


def _failed(error: SynodError, asked: ScoreRequest) -> ItemResult:
    return failed_response(replace(asked, items=(ScoreItem(),)), error).results[0]
