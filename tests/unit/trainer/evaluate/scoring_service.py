"""A reward service for evaluations, in place of HTTP's network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import httpx
import pytest

from synod.client import SynodClient
from synod.contracts import ItemResult, Outcome, Score, ScoreFailure, ScoreRequest, ScoreResponse
from synod.errors import SynodError
from synod.images import ImageLimits, decode_item
from tests.unit.trainer.reward_services import WIRE, brightness

LOST = ScoreFailure("scorer_failed", "planted")
Handler = Callable[[httpx.Request], httpx.Response]


def connect(monkeypatch: pytest.MonkeyPatch, command: ModuleType, service: Handler) -> None:
    """Let the clients that a module opens reach `service`, without retries."""

    def client(url: str, **options: Any) -> SynodClient:
        return SynodClient(url, **{**options, "retries": 0}, transport=httpx.MockTransport(service))

    monkeypatch.setattr(command, "SynodClient", client)


def score(scorer: str, value: float) -> Score:
    """The score of an image of this brightness; `geneval` finds bright images right."""
    right = float(value > 0.5)
    return Score(value, {"official": right, "strict": 0.0, "soft": value} if scorer == "geneval" else {})


class Service:
    """Scores brightness, and verdicts of GenEval by it.

    `fails(scorer, brightness)` names the scores to lose; `error(n)` is the refusal of request number n; `needs` are the
    scorers served and their inputs.
    """

    def __init__(self) -> None:
        self.requests: list[ScoreRequest] = []
        self.fails: Callable[[str, float], bool] = lambda scorer, value: False
        self.error: Callable[[int], SynodError | None] = lambda number: None
        self.needs = {"ber": ["image", "prompt"], "hps": ["image", "prompt"], "geneval": ["image", "geneval"]}
        self._lock = threading.Lock()

    def __call__(self, http: httpx.Request) -> httpx.Response:
        if http.method == "GET":
            scorers = [{"name": name, "needs": needs} for name, needs in self.needs.items()]
            return httpx.Response(200, json={"scorers": scorers, "ensembles": {}, "limits": {}})
        request = WIRE.decode_request(http.content)
        with self._lock:
            self.requests.append(request)
            error = self.error(len(self.requests) - 1)
        headers = {"content-type": WIRE.content_type}
        if error is not None:
            return httpx.Response(error.http_status, content=WIRE.encode_error(error), headers=headers)
        results = []
        for item in request.items:
            value = brightness(decode_item(item, ImageLimits(2**20, 2**20)))
            found: dict[str, Outcome] = {s: LOST if self.fails(s, value) else score(s, value) for s in request.scorers}
            results.append(ItemResult(found))
        response = ScoreResponse(tuple(results), request.request_id or "")
        return httpx.Response(200, content=WIRE.encode_response(response), headers=headers)

    @property
    def num_items(self) -> int:
        return sum(len(request.items) for request in self.requests)
