"""A real OpenTelemetry collector: OTLP over HTTP on a loopback port, with spans kept in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True, slots=True)
class Seen:
    """A received span. Ids are hexadecimal, `parent` is "" for a root, `links` are span ids."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    kind: int
    attributes: Mapping[str, Any]
    events: tuple[tuple[str, Mapping[str, Any]], ...]
    links: tuple[str, ...]
    failed: bool
    start_ns: int
    end_ns: int


@dataclass
class Collector:
    """Received spans, bodies and headers. Posts are answered while `answering` is set and held otherwise."""

    url: str = ""
    spans: list[Seen] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    begun: int = 0
    answering: threading.Event = field(default_factory=threading.Event)

    def named(self, name: str) -> list[Seen]:
        """Return the spans with this name, in order of their start."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start_ns)

    def one(self, name: str) -> Seen:
        """Return the only span with this name."""
        (span,) = self.named(name)
        return span

    def tree(self, parent: str) -> dict[str, Any]:
        """Return the names of the spans below a span id, recursively; siblings must have different names."""
        children = [span for span in self.spans if span.parent == parent]
        assert len({span.name for span in children}) == len(children), [span.name for span in children]
        return {span.name: self.tree(span.id) for span in children}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector until the block ends."""
    collector = Collector()
    collector.answering.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.begun += 1
            collector.answering.wait()
            if self.path == "/v1/traces":
                collector.headers.append({key.lower(): value for key, value in self.headers.items()})
                collector.bodies.append(body)
                collector.spans += _spans(body)
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield collector
    finally:
        collector.answering.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _spans(body: bytes) -> Iterator[Seen]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _plain(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Seen(
                    service,
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.kind,
                    _plain(span.attributes),
                    tuple((event.name, _plain(event.attributes)) for event in span.events),
                    tuple(link.span_id.hex() for link in span.links),
                    span.status.code == span.status.STATUS_CODE_ERROR,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                )


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)
