"""`/metrics` and `/healthz` over HTTP, for what Prometheus asks beside a gateway."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Exporter(ThreadingHTTPServer):
    """Answers `/metrics` with what `tell` returns then; every path besides it and `/healthz` is 404. Port 0 is a free
    one."""

    def __init__(self, host: str, port: int, tell: Callable[[], bytes], content_type: str = CONTENT_TYPE) -> None:
        self.content_type = content_type
        self.bodies: dict[str, Callable[[], bytes]] = {"/metrics": tell, "/healthz": lambda: b"ok\n"}
        super().__init__((host, port), _Page)


class _Page(BaseHTTPRequestHandler):
    server: Exporter
    timeout = 10  # seconds that a caller may take for its request

    def do_GET(self) -> None:
        tell = self.server.bodies.get(self.path)
        if tell is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body = tell()
        self.send_response(HTTPStatus.OK)
        self.send_header("content-type", self.server.content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: a scrape every few seconds is no news."""


def parser(program: str, about: str, port: int) -> ArgumentParser:
    """The command line of `python -m program`: `--host` and `--port`, which is `port` unless told."""
    found = ArgumentParser(prog=f"python -m {program}", description=about)
    found.add_argument("--host", default="0.0.0.0", help="default: all interfaces, as Ray's own metrics")
    found.add_argument("--port", type=int, default=port, help=f"default: {port}")
    return found
