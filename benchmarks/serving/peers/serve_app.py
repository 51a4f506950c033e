"""Plain Ray Serve behind its default proxy, msgpack: one deployment with `@serve.batch`, as a user would write it.

`/` is one hop. `/two` is two: a deployment reads the request and calls the scorer's handle.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from services.cluster.local import environment
from services.cluster.processes import kill_users_of

os.environ.update(environment())  # before Ray is imported

import msgpack
import ray
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.serving.jobs import Job, Scores, read_items

IN_FLIGHT = 256


class Scorer:
    def __init__(self) -> None:
        self._job = Job()

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.005)
    async def score(self, requests: list[Any]) -> list[Scores]:
        return self._job.score_many(requests)

    async def __call__(self, request: Request) -> Response:
        return _answer(await self.score(read_items(msgpack.unpackb(await request.body()))))


class Gateway:
    def __init__(self, scorer: Any) -> None:
        self._scorer = scorer

    async def __call__(self, request: Request) -> Response:
        return _answer(await self._scorer.score.remote(read_items(msgpack.unpackb(await request.body()))))


def _answer(scores: Scores) -> Response:
    return Response(msgpack.packb({"scores": scores}), media_type="application/msgpack")


def main() -> int:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    try:
        ray.init(
            address="local",
            num_cpus=8,  # logical
            object_store_memory=256 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=str(folder),
        )
        serve.start(
            http_options=HTTPOptions(host="127.0.0.1", port=int(os.environ["BENCH_PORT"])),
            proxy_location="HeadOnly",
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        env = {"runtime_env": {"env_vars": {"BENCH_SCORERS": os.environ["BENCH_SCORERS"]}}, "num_cpus": 0.1}
        deploy = serve.deployment(max_ongoing_requests=IN_FLIGHT, ray_actor_options=env)
        scorer, gateway = deploy(Scorer), deploy(Gateway)
        serve.run(scorer.bind(), name="one", route_prefix="/")
        serve.run(gateway.bind(scorer.bind()), name="two", route_prefix="/two")
        stop.wait()
    finally:
        ray.shutdown()
        kill_users_of(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
