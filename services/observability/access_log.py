"""What is told of a request, in its line of the access log and in its span: never a token, a prompt, an image, or a
name that the service does not serve.

The log is off until `open_log`; then several gateways append to one file, a JSON line a write.
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
_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")  # for a header and for a line


def open_log(path: Path) -> None:
    """Append to `path` from now on; it may be moved away at any time (log rotation)."""
    handler = WatchedFileHandler(path)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def safe_id(request_id: str) -> str | None:
    """The id where it can be repeated; callers choose theirs."""
    return request_id if _SAFE_ID.fullmatch(request_id) else None


class AccessRecord:
    """One request, from its beginning. `by` and `asked` add what is known of it, `told` writes the line. Its
    caller ends the span."""

    def __init__(self, route: str, span: Span = NO_SPAN) -> None:
        self.span = span
        self._began_s = time.monotonic()
        self._fields: dict[str, object] = {"route": route}

    def set_caller(self, name: str) -> None:
        """Add the caller's name."""
        self._fields["caller"] = name
        self.span.set(caller=name)

    def set_request(self, request: ScoreRequest, scorers: Container[str], ensembles: Container[str]) -> None:
        """What is asked for, of the `scorers` and `ensembles` that are served."""
        named = (*request.scorers, *(request.weights or ()))
        served = [name for name in dict.fromkeys(named) if name in scorers]
        ensemble = request.ensemble if request.ensemble in ensembles else None
        self._fields |= {"scorers": served, "ensemble": ensemble, "items": len(request.items)}
        self.span.set(scorers=served, ensemble=ensemble or "", items=len(request.items))

    def finish(self, outcome: str, request_id: str) -> None:
        """What it came to: 'ok', an error's code, or 'client_gone'; of an answer in parts, once it has ended."""
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
            "ms": round(1000 * (time.monotonic() - self._began_s), 1),
            "outcome": outcome,
        }
        log.info(json.dumps(line))
