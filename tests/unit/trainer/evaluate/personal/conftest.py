"""A folder of two concepts, a stand-in for a policy, and a reward service in place of HTTP's network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest

from services.scorers import registry
from synod.client import SynodClient
from synod.contracts import ItemResult, Outcome, Pixels, Score, ScoreFailure, ScoreItem, ScoreRequest, ScoreResponse
from synod.images import ImageLimits, decode_item
from tests.unit.trainer.personalize.unify_tree import write_tree
from tests.unit.trainer.reward_services import WIRE
from trainer.evaluate.personal.items import SUITES, Item, plan
from trainer.personalize.folder import read_folder
from trainer.personalize.records import ConceptRecord
from trainer.types import Query, Seed

NAMES = (*("recognition", "bleu", "judge_text", "clip_i", "clip_t", "der", "fer", "knowledge", "dense_validity"),)


class Speaker:
    """Says a function of a query, and paints noise that follows from the seed; `until`: batches before it raises."""

    digest = "weights"

    def __init__(self, says: Callable[[Query], str] = lambda query: "yes", until: int = 10**6) -> None:
        self.says, self.until, self.calls = says, until, 0
        self.queries: list[Query] = []
        self.prompts: list[str] = []
        self.seeds: list[Seed] = []

    def answer(self, queries: Sequence[Query], seeds: Sequence[Seed]) -> list[str]:
        self._tick()
        self.queries += queries
        self.seeds += seeds
        return [self.says(query) for query in queries]

    def draw(self, prompts: Sequence[str], seeds: Sequence[Seed]) -> list[Pixels]:
        self._tick()
        self.prompts += prompts
        self.seeds += seeds
        return [np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8) for seed in seeds]

    def _tick(self) -> None:
        if self.calls == self.until:
            raise KeyboardInterrupt
        self.calls += 1


class Service:
    """The real scorers `recognition` and `bleu`; the judges read brightness, or compare texts."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = NAMES
        self.requests: list[ScoreRequest] = []
        self.fails: Callable[[str, ScoreItem], bool] = lambda scorer, item: False
        self._real = {
            name: registry.build(name, registry.SETTINGS.validate_python({"kind": name})) for name in NAMES[:2]
        }
        self._lock = threading.Lock()

    def __call__(self, http: httpx.Request) -> httpx.Response:
        if http.method == "GET":
            served = [{"name": name, "needs": []} for name in self.names]
            return httpx.Response(200, json={"scorers": served, "ensembles": {}, "limits": {}})
        request = WIRE.decode_request(http.content)
        with self._lock:
            self.requests.append(request)
        items = [decode_item(item, ImageLimits(2**20, 2**20)) for item in request.items]
        results = tuple(ItemResult({name: self._score(name, item) for name in request.scorers}) for item in items)
        body = WIRE.encode_response(ScoreResponse(results, request.request_id or ""))
        return httpx.Response(200, content=body, headers={"content-type": WIRE.content_type})

    def _score(self, name: str, item: ScoreItem) -> Outcome:
        if self.fails(name, item):
            return ScoreFailure("scorer_failed", "planted")
        if name in self._real:
            return self._real[name].score([item])[0]
        if name == "judge_text":
            assert item.reasoning is not None
            return Score(float(item.reasoning.text == item.reasoning.segments[0]))
        if name == "fer" and item.pixels().mean() < 120:
            return Score(0.0, {"reason": "no face in the image"})
        return Score(float(item.pixels().mean() / 255), {})

    @property
    def num_items(self) -> int:
        return sum(len(request.items) for request in self.requests)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "data")


@pytest.fixture
def records(data: Path) -> dict[str, ConceptRecord]:
    return read_folder(data)


@pytest.fixture
def items(records: dict[str, ConceptRecord]) -> list[Item]:
    """All items of UnifyBench and UnifyBench++, two images of a prompt."""
    return plan(list(records.values()), (*SUITES["unify"], *SUITES["unify_pp"]), images=2)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def client(service: Service) -> Iterator[SynodClient]:
    with SynodClient("http://service", retries=0, transport=httpx.MockTransport(service)) as client:
        yield client
