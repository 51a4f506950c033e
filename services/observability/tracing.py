"""Trace requests with OpenTelemetry. Only this module imports opentelemetry, and only `start` imports its SDK.

Code finds the span of its request with `current` and opens a child with `span`, whether or not tracing is on: when it
is off, all spans equal NO_SPAN. A span of an unsampled trace only propagates the trace. Other processes receive the W3C
`traceparent` string. Attribute names start with `synod.`.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import synod
from services.settings import TracingSettings
from synod import errors

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Value = str | int | float | Sequence[str]
TRACE_ID_HEADER: Final = "x-synod-trace-id"  # in HTTP responses and in gRPC trailing metadata
QUEUED_SPANS: Final = 2048  # when the queue is full, the oldest span is dropped
EXPORT_BATCH: Final = 512
EXPORT_PERIOD_S: Final = 1.0  # a killed process loses the spans since the last export
EXPORT_TIMEOUT_S: Final = 5.0  # for one export with its retries
STOP_TIMEOUT_S: Final = 2.0


class Span:
    """A span that is not recorded and is its own child; `traceparent` identifies its trace, if it has one."""

    recorded: ClassVar[bool] = False

    def __init__(self, traceparent: str | None = None) -> None:
        self.traceparent = traceparent

    @property
    def trace_id(self) -> str | None:
        """Return the trace id as 32 hexadecimal digits."""
        return None if self.traceparent is None else self.traceparent.split("-")[1]

    def __str__(self) -> str:
        return f"trace {self.trace_id}" if self.trace_id else "no trace"

    def child(self, name: str, *, links: Sequence[Span] = (), remote: bool = False, **attributes: Value) -> Span:
        """Start a child span. `remote`: another process does the work and receives the `traceparent`."""
        return self

    def set(self, **attributes: Value) -> None:
        """Add attributes, whose names get the prefix `synod.`."""

    def event(self, name: str, **attributes: Value) -> None:
        """Add an event that happened now."""

    def set_outcome(self, *outcomes: str) -> None:
        """Set the outcome: error codes, none for 'ok'. A fault of the service (HTTP 5xx) marks the span as failed."""

    def end(self) -> None:
        """End the span now. A second call has no effect."""

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.set_outcome(_code(error))
        self.end()


class _Recorded(Span):
    recorded = True

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        super().__init__(_traceparent(span.get_span_context()))
        self._tracer, self._span = tracer, span

    def child(self, name: str, *, links: Sequence[Span] = (), remote: bool = False, **attributes: Value) -> Span:
        span = self._tracer.start_span(
            name,
            trace.set_span_in_context(self._span, Context()),
            SpanKind.CLIENT if remote else SpanKind.INTERNAL,
            _named(attributes),
            [Link(one._span.get_span_context()) for one in links if isinstance(one, _Recorded)],
        )
        return _Recorded(self._tracer, span)

    def set(self, **attributes: Value) -> None:
        if self._span.is_recording():
            self._span.set_attributes(_named(attributes))

    def event(self, name: str, **attributes: Value) -> None:
        if self._span.is_recording():
            self._span.add_event(name, _named(attributes))

    def set_outcome(self, *outcomes: str) -> None:
        outcome = ",".join(outcomes) or "ok"
        self.set(outcome=outcome)
        if self._span.is_recording() and not errors.SERVER_ERROR_CODES.isdisjoint(outcomes):
            self._span.set_status(StatusCode.ERROR, outcome)

    def end(self) -> None:
        if self._span.is_recording():
            self._span.end()


NO_SPAN: Final = Span()
_current: ContextVar[Span] = ContextVar("current_span", default=NO_SPAN)
_w3c: Final = TraceContextTextMapPropagator()
_provider: TracerProvider | None = None
_tracer: trace.Tracer | None = None


def start(settings: TracingSettings, service: str) -> None:
    """Start tracing if the settings name a collector. `service` names this kind of process.

    A thread exports spans from a bounded queue: a slow or dead collector loses spans and never delays a request.
    """
    global _provider, _tracer
    if settings.endpoint is None or _provider is not None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    _provider = TracerProvider(
        ParentBased(TraceIdRatioBased(settings.sample_ratio)),
        Resource.create({"service.name": service, "service.version": synod.__version__}),
        shutdown_on_exit=False,  # it would wait for a dead collector
    )
    exporter = OTLPSpanExporter(f"{settings.endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_TIMEOUT_S)
    _provider.add_span_processor(BatchSpanProcessor(exporter, QUEUED_SPANS, 1000 * EXPORT_PERIOD_S, EXPORT_BATCH))
    _tracer = _provider.get_tracer("synod", synod.__version__)
    atexit.register(stop)


def stop() -> None:
    """Stop tracing, and export queued spans within STOP_TIMEOUT_S."""
    global _provider, _tracer
    ending, _provider, _tracer = _provider, None, None
    if ending is not None:
        atexit.unregister(stop)
        sending = threading.Thread(target=ending.shutdown, daemon=True)
        sending.start()
        sending.join(STOP_TIMEOUT_S)


def enabled() -> bool:
    """Return whether tracing has been started."""
    return _tracer is not None


def request_span(name: str, headers: Mapping[str, str]) -> Span:
    """Start the span of an incoming request, in the trace of the `traceparent` in `headers` or else in a new one.

    A malformed `traceparent` is ignored. Returns NO_SPAN when tracing is off.
    """
    if _tracer is None:
        return NO_SPAN
    parent = _w3c.extract({key: headers[key] for key in ("traceparent",) if key in headers}, Context())
    span = _tracer.start_span(name, parent, SpanKind.SERVER)
    return _Recorded(_tracer, span) if span.is_recording() else Span(_traceparent(span.get_span_context()))


def current() -> Span:
    """Return the current span: of this task, or of the one that created it."""
    return _current.get()


@contextmanager
def use_span(span: Span) -> Iterator[None]:
    """Make `span` the current one inside the block and in the tasks created there."""
    token = _current.set(span)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def span(name: str, *, remote: bool = False, **attributes: Value) -> Iterator[Span]:
    """Start a child of the current span and make it the current one inside the block."""
    with current().child(name, links=(), remote=remote, **attributes) as child, use_span(child):
        yield child


def _traceparent(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _named(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {f"synod.{name}": value for name, value in attributes.items()}


def _code(error: BaseException) -> str:
    if isinstance(error, errors.SynodError):
        return error.code
    return "cancelled" if isinstance(error, asyncio.CancelledError | GeneratorExit) else errors.SynodError.code
