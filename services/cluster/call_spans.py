"""CallSpans: the trace spans of one scorer's replica.

A call has one span from its arrival on, with two kinds of children: `wait` until its first batch runs, and `device` for
each batch that holds some of it. A batch has a span too, a child of its first call, with links to all calls in it; each
`device` span links to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from services.isolation import Cost
from services.observability import tracing
from services.observability.tracing import Span
from synod.contracts import ScoreItem


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    span: Span
    wait: Span


class CallSpans:
    """The sampled calls in progress. `cost` counts the images of items, `max_images` of which fill a batch.

    `call` belongs to the event loop, `running` to the thread that runs batches.
    """

    def __init__(self, scorer: str, cost: Cost, max_images: int) -> None:
        self._scorer, self._cost, self._max_images = scorer, cost, max_images
        self._of_item: dict[int, _Call] = {}  # by the id of an item, which its calls keep alive

    @contextmanager
    def call(self, items: Sequence[ScoreItem]) -> Iterator[None]:
        """Trace the call that waits for the outcomes of `items`, as a part of the current span."""
        traceparent = tracing.current().traceparent
        if traceparent is None or not tracing.enabled():
            yield
            return
        with tracing.request_span(f"replica {self._scorer}", {"traceparent": traceparent}) as span:
            if not span.recorded:
                yield
                return
            span.set(items=len(items), images=self._cost(items))
            with span.child("wait") as wait:
                call = _Call(span, wait)
                self._of_item.update({id(item): call for item in items})
                try:
                    yield
                finally:
                    for item in items:
                        self._of_item.pop(id(item), None)

    @contextmanager
    def running(self, items: Sequence[ScoreItem]) -> Iterator[None]:
        """Trace a batch of `items`."""
        if not self._of_item:
            yield
            return
        calls = list(dict.fromkeys(call for item in items if (call := self._of_item.get(id(item))) is not None))
        with ExitStack() as spans:
            if calls:
                for call in calls:
                    call.wait.end()
                images = self._cost(items)
                batch = calls[0].span.child(
                    f"batch {self._scorer}",
                    links=[call.span for call in calls],
                    items=len(items),
                    images=images,
                    fill=images / self._max_images,
                )
                spans.enter_context(batch)
                for call in calls:
                    spans.enter_context(call.span.child("device", links=[batch]))
            yield
