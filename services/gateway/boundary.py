"""Do for each request what no transport may forget: caller, request id, access record, metrics, span and typed errors.

HTTP, NDJSON and gRPC all open an `OpenRequest`, so that equal requests leave equal counters, records and spans.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Container
from dataclasses import replace

from services.gateway.auth import Authenticator, Scope
from services.gateway.quota import Caller
from services.observability import access_log, metrics
from services.observability.tracing import NO_SPAN, Span
from synod.contracts import ScoreRequest
from synod.errors import SynodError

log = logging.getLogger("synod.gateway")


class OpenRequest:
    """One request, from its arrival until `close`. Its outcome is 'client_gone' unless `succeed` or `fail` is called.

    `route` is the label in metrics and access log: an HTTP path or the name of a gRPC method. `streaming`: the response
    is sent in parts, and its sender calls `close`.
    """

    def __init__(self, route: str, span: Span = NO_SPAN, request_id: str | None = None) -> None:
        self.request_id = request_id or uuid.uuid4().hex
        self.span = span
        self.streaming = False
        self._route = route
        self._record = access_log.AccessRecord(route, span)
        self._started_s = time.monotonic()
        self._outcome = "client_gone"
        metrics.OPEN_REQUESTS.inc()

    def authenticate(self, authenticator: Authenticator, authorization: str | None, scope: Scope) -> Caller:
        """Return the caller and record its name. Raises Unauthenticated, PermissionDenied."""
        caller = authenticator.authenticate(authorization, scope)
        self.set_caller(caller)
        return caller

    def set_caller(self, caller: Caller) -> None:
        """Record the name of an authenticated caller."""
        self._record.set_caller(caller.name)

    def accept(self, request: ScoreRequest, scorers: Container[str], ensembles: Container[str]) -> ScoreRequest:
        """Record what the request asks for, as far as it is served; return the request with an id."""
        self.request_id = request.request_id or self.request_id
        self._record.set_request(request, scorers, ensembles)
        return replace(request, request_id=self.request_id)

    def succeed(self) -> None:
        """Set the outcome 'ok'."""
        self._outcome = "ok"

    def fail(self, error: Exception) -> SynodError:
        """Set the outcome and return the error to send. An unexpected exception is logged, and its text not sent."""
        if not isinstance(error, SynodError):
            log.error("request %s failed (%s)", self.request_id, self.span, exc_info=error)
            error = SynodError(f"internal error; report request id {self.request_id} to the operator")
        self._outcome = error.code
        return error

    def close(self) -> None:
        """Count the request, write its access record and end its span."""
        metrics.OPEN_REQUESTS.dec()
        metrics.REQUESTS.labels(self._route, self._outcome).inc()
        metrics.REQUEST_SECONDS.labels(self._route).observe(time.monotonic() - self._started_s)
        self._record.finish(self._outcome, self.request_id)
        self.span.end()
