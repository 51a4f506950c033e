"""Flask behind gunicorn's sync workers, JPEGs in a pickle: how reward servers for flow_grpo are written."""

from __future__ import annotations

import pickle
from typing import Any

from flask import Flask, Response, jsonify, request

from benchmarks.serving.jobs import Job, read_items

job = Job()
app = Flask(__name__)


@app.post("/")
def score() -> Response:
    tree: Any = pickle.loads(request.get_data())  # what this peer does; it hands the machine to whoever can post
    return jsonify(scores=job.score(read_items(tree)))
