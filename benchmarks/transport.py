"""Compare two transports of decoded images to scorers: Serve's gRPC messages and Ray's object store.

`python -m benchmarks.transport` writes benchmarks/results/transport.json: the median milliseconds of a request over
each transport, by request size, number of scorers and concurrent calls. The scorers read one byte of each memory page.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from benchmarks.machine import command, machine
from services.cluster.local import environment
from synod.contracts import ScoreItem

RESULTS: Final = Path(__file__).parent / "results" / "transport.json"
LIMIT: Final = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"  # 4 MiB unless set
SIZES: Final = {  # images in a request, side in pixels
    "1 x 256": (1, 256),
    "32 x 64": (32, 64),
    "8 x 128": (8, 128),
    "2 x 512": (2, 512),
    "8 x 512": (8, 512),
    "32 x 512": (32, 512),
    "32 x 1024": (32, 1024),
}
SECONDS: Final = 1.5  # of measurement per point
OBJECT_STORE_BYTES: Final = 2 * 2**30


class Reader:
    """A scorer that reads one byte of each memory page."""

    async def score(self, items: Sequence[ScoreItem]) -> int:
        return sum(int(item.pixels().reshape(-1)[::4096].sum()) for item in items)


class Sender:
    """A gateway that sends the same items to its scorers repeatedly."""

    def __init__(self, *scorers: Any) -> None:
        options = {"_by_reference": False, "request_serialization": "pickle", "response_serialization": "pickle"}
        self._by_reference = scorers
        self._by_value = [scorer.options(**options) for scorer in scorers]

    async def measure(self, images: int, side: int, scorers: int, at_once: int, transport: str) -> list[float]:
        """Send requests for SECONDS and return the seconds of each."""
        rng = np.random.default_rng(0)
        items = tuple(ScoreItem(image=rng.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(images))
        ends_s = time.monotonic() + SECONDS
        took: list[float] = []

        async def caller() -> None:
            while time.monotonic() < ends_s or not took:
                began_s = time.monotonic()
                await self._ask(items, scorers, transport)
                took.append(time.monotonic() - began_s)

        await self._ask(items, scorers, transport)
        await asyncio.gather(*(caller() for _ in range(at_once)))
        return took

    async def _ask(self, items: tuple[ScoreItem, ...], scorers: int, transport: str) -> None:
        import ray

        if transport == "grpc":
            calls = [handle.score.remote(items) for handle in self._by_value[:scorers]]
        else:
            shared = await asyncio.to_thread(ray.put, items)
            calls = [handle.score.remote(shared) for handle in self._by_reference[:scorers]]
        sums = await asyncio.gather(*calls)
        assert len(set(sums)) == 1


def main() -> None:
    """Measure every point and write JSON."""
    os.environ.update(environment())
    os.environ[LIMIT] = str(2**31 - 1)
    import ray
    from ray import serve

    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    try:
        serve.start(proxy_location="Disabled")
        readers = [
            serve.deployment(Reader).options(name=f"reader{i}", max_ongoing_requests=64).bind() for i in range(2)
        ]
        sender = serve.deployment(Sender).options(max_ongoing_requests=64).bind(*readers)
        handle = serve.run(sender, name="transport", route_prefix=None)
        points = []
        for name, (images, side) in SIZES.items():
            for scorers in (1, 2):
                for at_once in (1, 4):
                    found: dict[str, Any] = {"images": name, "mib": round(images * side * side * 3 / 2**20, 2)}
                    found |= {"scorers": scorers, "at_once": at_once}
                    for transport in ("grpc", "store", "grpc", "store"):
                        took = handle.measure.remote(images, side, scorers, at_once, transport).result()
                        found.setdefault(f"{transport}_ms", []).append(round(1000 * median(took), 2))
                    points.append(found)
                    print(json.dumps(found), flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()
    RESULTS.write_text(json.dumps({"command": command(), "machine": machine(), "points": points}, indent=1) + "\n")


if __name__ == "__main__":
    main()
