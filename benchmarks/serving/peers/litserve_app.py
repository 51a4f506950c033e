"""LitServe, JSON with base64. A batch has up to BENCH_BATCH requests that arrive within BENCH_WAIT_MS."""

import os
from typing import Any

import litserve
from fastapi import Request

from benchmarks.serving.jobs import Job, Scores, read_items

BATCH = int(os.environ["BENCH_BATCH"])


class Rewards(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._job = Job()

    def decode_request(self, request: Request, **_: Any) -> Any:
        """Read the items. LitServe passes the body's JSON, although the annotation must be `Request`."""
        tree: Any = request
        return read_items(tree)

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, batch: list[Any], **_: Any) -> Any:
        return self._job.score_many(batch) if BATCH > 1 else self._job.score(batch)

    def unbatch(self, output: list[Scores]) -> list[Scores]:
        return output

    def encode_response(self, output: Scores, **_: Any) -> dict[str, Any]:
        return {"scores": output}


if __name__ == "__main__":
    api = Rewards(max_batch_size=BATCH, batch_timeout=float(os.environ["BENCH_WAIT_MS"]) / 1000)
    server = litserve.LitServer(api, accelerator="cpu", timeout=300)
    server.run(host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), generate_client_file=False, log_level="warning")
