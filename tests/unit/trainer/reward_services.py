"""Reward services for tests: a judge of pixels in this process, and an HTTP server in front of one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from synod.codec import CODECS
from synod.contracts import ItemResult, Outcome, Score, ScoreFailure, ScoreItem, ScoreRequest, ScoreResponse
from trainer.types import Reward, RewardSpec

WIRE = CODECS["application/msgpack"]
LOST = ScoreFailure("scorer_failed", "planted")
CATALOGUE = {
    "scorers": [
        {"name": "ber", "needs": ["image", "prompt"]},
        {"name": "pickscore", "needs": ["image", "prompt"]},
        {"name": "geneval", "needs": ["image", "geneval"]},
    ],
    "ensembles": {"sync_r1": {"by_kind": {"animal": {"ber": 1.0}}}},
}
Measure = Callable[[ScoreItem], float | None]  # None: the score is lost


def brightness(item: ScoreItem) -> float:
    """Mean of the image in [0, 1]."""
    return float(item.pixels().mean() / 255)


def brightness_or_length(item: ScoreItem) -> float:
    """Of the image, or of the answer of an item without one."""
    if item.image is not None:
        return brightness(item)
    assert item.reasoning is not None
    return len(item.reasoning.text) / 100


def redness(item: ScoreItem) -> float:
    """Mean of the red channel in [0, 1]."""
    return float(item.pixels()[..., 0].mean() / 255)


class Judge:
    """Scores finished images by `reward` and previews by `surrogate`; records its requests."""

    def __init__(self, reward: Measure = brightness, surrogate: Measure = redness) -> None:
        self.reward, self.surrogate_of = reward, surrogate
        self.previewed: list[tuple[ScoreItem, float | None]] = []
        self.asked: list[tuple[RewardSpec, tuple[ScoreItem, ...]]] = []
        self._lock = threading.Lock()

    def submit_previews(self, items: Sequence[ScoreItem], reward: RewardSpec | None = None) -> Future[list[Reward]]:
        with self._lock:
            scores = [self.surrogate_of(item) for item in items]
            self.previewed += zip(items, scores, strict=True)
        return answered([_reward(score) for score in scores])

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        with self._lock:
            self.asked.append((reward, tuple(items)))
            return answered([_reward(self.reward(item)) for item in items])


def answered(rewards: list[Reward]) -> Future[list[Reward]]:
    """A request that was answered at once."""
    future: Future[list[Reward]] = Future()
    future.set_result(rewards)
    return future


def judged(request: ScoreRequest, judge: Judge) -> ScoreResponse:
    """The response of a service: the scorer "ber" is the surrogate, anything else the reward."""
    if request.scorers == ("ber",):
        rewards = judge.submit_previews(request.items).result()
    else:
        spec = RewardSpec(dict.fromkeys(request.scorers, 1.0), request.ensemble)
        rewards = judge.submit(request.items, spec).result()
    outcomes: list[Outcome] = [LOST if r.value is None else Score(r.value) for r in rewards]
    asks_ensemble = request.ensemble is not None
    results = [
        ItemResult(dict.fromkeys(request.scorers or ("ber",), o), o if asks_ensemble else None) for o in outcomes
    ]
    return ScoreResponse(tuple(results), request.request_id or "")


@contextmanager
def serve(judge: Judge, rewarding: Callable[[int], None] = lambda number: None, port: int = 0) -> Iterator[str]:
    """Yield the URL of a service; `rewarding` is called before it answers reward request 0, 1, ..."""
    count, lock = [0], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send("application/json", json.dumps(CATALOGUE).encode())

        def do_POST(self) -> None:
            request = WIRE.decode_request(self.rfile.read(int(self.headers["content-length"])))
            if request.scorers != ("ber",):
                with lock:
                    count[0] += 1
                    number = count[0] - 1
                rewarding(number)
            self._send(WIRE.content_type, WIRE.encode_response(judged(request, judge)))

        def _send(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    class Server(ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None: ...  # a client that was killed

    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _reward(value: float | None) -> Reward:
    return Reward(None, failure=LOST) if value is None else Reward(value, {"ber": value})
