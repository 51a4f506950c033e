"""mosec, msgpack. A batch has up to BENCH_BATCH requests that arrive within BENCH_WAIT_MS."""

from __future__ import annotations

import os
from typing import Any

from mosec import Server, Worker
from mosec.mixin import MsgpackMixin

from benchmarks.serving.jobs import Job, read_items

BATCH = int(os.environ["BENCH_BATCH"])


class Rewards(MsgpackMixin, Worker):
    def __init__(self) -> None:
        self._job = Job()

    def forward(self, data: Any) -> Any:
        if BATCH == 1:
            return {"scores": self._job.score(read_items(data))}
        return [{"scores": scores} for scores in self._job.score_many([read_items(request) for request in data])]


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Rewards, num=1, max_batch_size=BATCH, max_wait_time=int(os.environ["BENCH_WAIT_MS"]), timeout=300
    )
    server.run()
