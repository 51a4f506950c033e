"""Write one JSON line per request to the access log, and the same facts to its span.

Neither ever holds a token, a prompt, an image, or a scorer's name that the service does not know. The log is off until
`open_log`. Several gateways may append to one file: each line is a single write.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Container
from logging.handlers import WatchedFileHandler
from pathlib import Path

from services.observability.tracing import NO_SPAN, Span
from synod.contracts import ScoreRequest

log = logging.getLogger("synod.access")
log.setLevel(logging.CRITICAL)
_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")  # safe in a header and in a line


def open_log(path: Path) -> None:
    """Append to `path` from now on. Log rotation may rename the file at any time."""
    handler = WatchedFileHandler(path)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def safe_id(request_id: str) -> str | None:
    """Return the id, which callers choose, if it can be repeated in a header or a line."""
    return request_id if _SAFE_ID.fullmatch(request_id) else None


class AccessRecord:
    """The record of one request, from its arrival until `finish`. The creator of the span ends it."""

    def __init__(self, route: str, span: Span = NO_SPAN) -> None:
        self.span = span
        self._started_s = time.monotonic()
        self._fields: dict[str, object] = {"route": route}

    def set_caller(self, name: str) -> None:
        """Add the caller's name."""
        self._fields["caller"] = name
        self.span.set(caller=name)

    def set_request(self, request: ScoreRequest, scorers: Container[str], ensembles: Container[str]) -> None:
        """Add the scorers and the ensemble that the request names, if the service knows them."""
        named = (*request.scorers, *(request.weights or ()))
        known = [name for name in dict.fromkeys(named) if name in scorers]
        ensemble = request.ensemble if request.ensemble in ensembles else None
        self._fields |= {"scorers": known, "ensemble": ensemble, "items": len(request.items)}
        self.span.set(scorers=known, ensemble=ensemble or "", items=len(request.items))

    def finish(self, outcome: str, request_id: str) -> None:
        """Write the line. `outcome` is 'ok', an error's code, or 'client_gone'."""
        shown_id = safe_id(request_id)
        self.span.set(request_id=shown_id or "")
        self.span.set_outcome(outcome)
        if not log.isEnabledFor(logging.INFO):
            return
        line = {
            "time": round(time.time(), 3),
            "request_id": shown_id,
            **({} if self.span.trace_id is None else {"trace_id": self.span.trace_id}),
            **self._fields,
            "ms": round(1000 * (time.monotonic() - self._started_s), 1),
            "outcome": outcome,
        }
        log.info(json.dumps(line))
