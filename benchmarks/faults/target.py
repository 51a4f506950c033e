"""The gateway to be fuzzed: REST and gRPC in its own process.

It prints its ports and ends when its stdin closes.

python -m benchmarks.faults.target
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import uvicorn

from services.backends import LocalBackend
from services.gateway import app
from services.gateway.core import Gateway
from services.gateway.rpc_server import RpcServer
from services.scorers.base import Need, ScorerSpec
from services.settings import EnsembleSettings, LimitSettings
from synod.contracts import Origin, Outcome, Score, ScoreItem

LIMITS: Final = LimitSettings(max_body_bytes=2**20, max_items=64, max_image_pixels=256 * 256)
ENSEMBLES: Final = {"council": EnsembleSettings(by_kind={"animal": {"level": 0.5, "words": 0.5}})}


class Plain:
    """A scorer that cannot fail, so that every failure comes from the gateway."""

    def __init__(self, name: str, needs: tuple[Need, ...], read: Callable[[ScoreItem], float]) -> None:
        self.spec = ScorerSpec(name, needs, 0.0, 1.0, "a fuzz", "a fuzz", Origin("none", "1"))
        self._read = read

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [Score(self._read(item), {"needs": list(self.spec.needs)}) for item in items]


def level(item: ScoreItem) -> float:
    """Return the image's mean, 0 to 1."""
    return float(item.pixels().mean()) / 255


def likeness(item: ScoreItem) -> float:
    """Return 1 minus the difference in brightness of references and image."""
    means = [float(pixels.mean()) for pixels in item.reference_pixels()]
    return 1 - abs(float(np.mean(means)) / 255 - level(item))


async def serve() -> None:
    """Serve until stdin closes."""
    scorers = (
        Plain("level", ("image",), level),
        Plain("words", ("prompt",), lambda item: len(item.prompt or "") % 7 / 7),
        Plain("likeness", ("image", "references"), likeness),
    )
    backend = LocalBackend({scorer.spec.name: scorer for scorer in scorers})
    gateway = Gateway(backend, ENSEMBLES, LIMITS)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app.build(gateway), log_level="error", ws="none"))
    serving = asyncio.create_task(server.serve([listener]))
    rpc = RpcServer(gateway, LIMITS.max_body_bytes)
    ports = {"http": listener.getsockname()[1], "rpc": await rpc.start("127.0.0.1:0")}
    print(json.dumps(ports), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await rpc.stop()
    server.should_exit = True
    await serving
    await backend.close()


if __name__ == "__main__":
    asyncio.run(serve())
