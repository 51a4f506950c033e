"""CallSpans: the trace spans of one scorer in one replica.

A call's span starts when the call arrives. Its children are one `wait` span, until its first batch runs, and a `device`
span for each batch that contains some of its items. A batch also has a span: a child of the span of its first call,
with links to all calls in the batch. Each `device` span links to the span of its batch.
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
    """The sampled calls in progress. `cost` counts the images of items; `max_images` is the size of a full batch.

    The event loop uses `call`; the thread that runs batches uses `running`.
    """

    def __init__(self, scorer: str, cost: Cost, max_images: int) -> None:
        self._scorer, self._cost, self._max_images = scorer, cost, max_images
        self._of_item: dict[int, _Call] = {}  # by the id of the item, which the call keeps alive

    @contextmanager
    def call(self, items: Sequence[ScoreItem]) -> Iterator[None]:
        """Trace the call that waits for the outcomes of `items`, as a child of the current span."""
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
