"""`python -m services.cluster.exporter [--port N]`: the metrics of a node on which no gateway answers `/metrics`.

It reads the files that the replicas of its node write (PROMETHEUS_MULTIPROC_DIR names their folder), and must see their
process ids. Reward health is not among them: gateways count it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from services.gateway import metrics

PORT = 8001


class Page(BaseHTTPRequestHandler):
    """`/metrics` and `/healthz`; everything else is 404."""

    timeout = 10  # seconds that a caller may take for its request

    def do_GET(self) -> None:
        bodies = {"/metrics": metrics.render, "/healthz": lambda: b"ok\n"}
        if self.path not in bodies:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body = bodies[self.path]()
        self.send_response(HTTPStatus.OK)
        self.send_header("content-type", metrics.CONTENT_TYPE)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: a scrape every few seconds is no news."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until the process ends."""
    parser = argparse.ArgumentParser(prog="python -m services.cluster.exporter", description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="0.0.0.0", help="default: all interfaces, as Ray's own metrics")
    parser.add_argument("--port", type=int, default=PORT)
    options = parser.parse_args(arguments)
    with ThreadingHTTPServer((options.host, options.port), Page) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
