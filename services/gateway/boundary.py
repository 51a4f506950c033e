"""One request of any transport, from its arrival to its outcome: request metrics, access log line and span.

HTTP, NDJSON and gRPC all count through here, so that equal requests move equal counters.
"""

from __future__ import annotations

import time

from services.observability import access_log, metrics
from services.observability.tracing import NO_SPAN, Span


class OpenRequest:
    """A request that is being answered; `finish` must be called, and only its first call counts.

    `route` is the label of the metrics and of the access log: an HTTP path, or the name of a gRPC method.
    """

    def __init__(self, route: str, span: Span = NO_SPAN) -> None:
        self.access = access_log.AccessRecord(route, span)
        self.span = span
        self._route = route
        self._began_s = time.monotonic()
        self._finished = False
        metrics.OPEN_REQUESTS.inc()

    def finish(self, outcome: str) -> None:
        """Record the outcome: 'ok', an error's code, or 'client_gone'. Of an answer in parts, once its last is sent."""
        if self._finished:
            return
        self._finished = True
        metrics.OPEN_REQUESTS.dec()
        metrics.REQUESTS.labels(self._route, outcome).inc()
        metrics.REQUEST_SECONDS.labels(self._route).observe(time.monotonic() - self._began_s)
        self.access.finish(outcome)
        self.span.end()
