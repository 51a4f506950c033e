"""Score many items in concurrent batches; results keep the order of the items."""

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
MAX_CONCURRENT_BATCHES: Final = 4
_REQUEST_ERRORS: Final = (UnknownScorer, Unauthenticated, PermissionDenied)  # a smaller batch would fail too


@dataclass(frozen=True, slots=True)
class Scored:
    """A source and its result; `result` is None for one that was skipped."""

    loaded: Loaded
    result: ItemResult | None


def score_all(
    client: SynodClient,
    sources: Iterable[Source],
    template: ScoreRequest,
    skip: Callable[[Loaded], bool] = lambda loaded: False,
) -> Iterator[Scored]:
    """Yield every source's result, in order.

    `template` is the request without items. `skip` is called in the same order. An item that makes its whole request
    invalid fails alone. Raises the SynodError of a failed batch, after the results of the batches in flight.
    """
    pending: deque[Future[list[Scored]]] = deque()
    left, failed = iter(sources), None
    with ThreadPoolExecutor(MAX_CONCURRENT_BATCHES, "score") as pool:
        while pending or failed is None:
            while (
                failed is None and len(pending) < MAX_CONCURRENT_BATCHES and (batch := list(islice(left, BATCH_ITEMS)))
            ):
                loaded = list(pool.map(Source.load, batch))
                pending.append(pool.submit(_score, client, [(one, skip(one)) for one in loaded], template))
            if not pending:
                return
            try:
                yield from pending.popleft().result()
            except SynodError as error:
                failed = failed or error
    assert failed is not None
    raise failed


def _score(client: SynodClient, batch: list[tuple[Loaded, bool]], template: ScoreRequest) -> list[Scored]:
    items = [one.item for one, skipped in batch if not skipped and isinstance(one.item, ScoreItem)]
    results = iter(_score_bisecting(client, tuple(items), template))
    return [Scored(one, None if skipped else _result(one, results, template)) for one, skipped in batch]


def _result(loaded: Loaded, results: Iterator[ItemResult], template: ScoreRequest) -> ItemResult:
    if isinstance(loaded.item, ScoreItem):
        return next(results)
    return _failed(loaded.item, template)


def _score_bisecting(client: SynodClient, items: tuple[ScoreItem, ...], template: ScoreRequest) -> list[ItemResult]:
    """Return one result per item; halve an invalid request until the invalid item is alone."""
    if not items:
        return []
    try:
        return list(client.score(replace(template, items=items)).results)
    except _REQUEST_ERRORS:
        raise
    except (InvalidRequest, UnknownImage) as error:
        if len(items) == 1:
            return [_failed(error, template)]
    half = len(items) // 2
    return [*_score_bisecting(client, items[:half], template), *_score_bisecting(client, items[half:], template)]


def _failed(error: SynodError, template: ScoreRequest) -> ItemResult:
    return failed_response(replace(template, items=(ScoreItem(),)), error).results[0]
