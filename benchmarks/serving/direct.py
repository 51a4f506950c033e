"""Measure the limit of one process: decode the images and call the scorers directly, without a server.

The scorers share model outputs for an image, as colocated scorers of the service do.

`python -m benchmarks.serving.direct LOAD.json` reads a `Load` of one call and prints the measurements of
`benchmarks.serving.load`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import torch

from benchmarks.serving.jobs import Job, read_items
from benchmarks.serving.load import Load, Recorder, read_load
from services.models.image_memo import MEMO
from synod import memory


def measure(load: Load) -> dict[str, Any]:
    """Score the bodies in turn until the repeats are complete."""
    memory.keep_freed_memory()
    MEMO.enabled = True
    torch.set_num_threads(1)
    job, recorder = Job(), Recorder(replace(load, servers=[os.getpid()]))
    (call,) = load.calls
    bodies = [Path(body).read_bytes() for body in call.bodies]
    answers: dict[int, bytes] = {}
    requests = 0
    while not recorder.done:
        k = requests % len(bodies)
        began_s = time.monotonic()
        answers[k] = msgpack.packb({"scores": job.score(read_items(msgpack.unpackb(bodies[k])))})
        recorder.ended(time.monotonic() - began_s)
        requests += 1
    Path(load.answers, "0.answer").write_bytes(answers[0])
    return recorder.result(sum(map(len, bodies)) / len(bodies) / load.images)


if __name__ == "__main__":
    print(json.dumps(measure(read_load(sys.argv[1]))))
