"""What goes with every call: the bearer token and the trace context."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from synod.secret import Secret, from_file


def find_token(given: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return `given`, else SYNOD_TOKEN, else the content of the file SYNOD_TOKEN_FILE, else None.

    Raises SettingsError, which does not quote the token.
    """
    if given is not None:
        return Secret("the 'token' argument", given).token()
    if environ.get("SYNOD_TOKEN"):
        return Secret("SYNOD_TOKEN", environ["SYNOD_TOKEN"]).token()
    if path := environ.get("SYNOD_TOKEN_FILE"):
        return from_file("SYNOD_TOKEN_FILE", path).token()
    return None


def trace_headers() -> dict[str, str]:
    """Return the W3C `traceparent` of the current OpenTelemetry span; empty without one.

    OpenTelemetry is not a dependency: it is used only if the caller has imported it.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    return {"traceparent": f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"}
