"""Serve `/metrics` and `/healthz` over HTTP, for processes other than gateways that Prometheus scrapes."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Exporter(ThreadingHTTPServer):
    """Answer `/metrics` with what `render` returns, and `/healthz`; other paths are 404. Port 0 picks a free port."""

    def __init__(self, host: str, port: int, render: Callable[[], bytes], content_type: str = CONTENT_TYPE) -> None:
        self.content_type = content_type
        self.bodies: dict[str, Callable[[], bytes]] = {"/metrics": render, "/healthz": lambda: b"ok\n"}
        super().__init__((host, port), _Page)


class _Page(BaseHTTPRequestHandler):
    server: Exporter
    timeout = 10  # seconds to receive a request

    def do_GET(self) -> None:
        render = self.server.bodies.get(self.path)
        if render is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body = render()
        self.send_response(HTTPStatus.OK)
        self.send_header("content-type", self.server.content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing: Prometheus scrapes every few seconds."""


def parser(program: str, about: str, port: int) -> ArgumentParser:
    """Return the parser of `python -m program`, with `--host` and `--port` (default: `port`)."""
    arguments = ArgumentParser(prog=f"python -m {program}", description=about)
    arguments.add_argument("--host", default="0.0.0.0", help="default: all interfaces, as for Ray's own metrics")
    arguments.add_argument("--port", type=int, default=port, help=f"default: {port}")
    return arguments
