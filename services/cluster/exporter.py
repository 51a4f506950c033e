"""`python -m services.cluster.exporter [--port N]`: export the metrics of a node that has no gateway.

It reads the files that the node's replicas write (their folder is PROMETHEUS_MULTIPROC_DIR), and must run in their
process namespace. Only gateways export reward health.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.observability import metrics
from synod.exporter import Exporter, parser

PORT = 8001


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the metrics until the process ends."""
    options = parser("services.cluster.exporter", __doc__.splitlines()[0], PORT).parse_args(arguments)
    with Exporter(options.host, options.port, metrics.render, metrics.CONTENT_TYPE) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
