"""Flask behind gunicorn's sync workers, with pickled JPEGs, as reward servers for flow_grpo are written."""

from __future__ import annotations

import pickle
from typing import Any

from flask import Flask, Response, jsonify, request

from benchmarks.serving.jobs import Job, read_items

job = Job()
app = Flask(__name__)


@app.post("/")
def score() -> Response:
    tree: Any = pickle.loads(request.get_data())  # as those servers do, although any client can then run code here
    return jsonify(scores=job.score(read_items(tree)))
