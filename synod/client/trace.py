"""The caller's trace, told to the service. OpenTelemetry is no dependency: who has a span has imported it."""

from __future__ import annotations

import sys


def headers() -> dict[str, str]:
    """The W3C `traceparent` of the current OpenTelemetry span; empty without one."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    return {"traceparent": f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"}
