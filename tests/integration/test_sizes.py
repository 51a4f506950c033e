"""Requests of realistic size over every transport, on the session's Ray."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from services.cluster.local import free_port
from services.settings import load
from synod.client import SynodClient
from synod.contracts import Score, ScoreItem, ScoreRequest
from synod.errors import PayloadTooLarge
from tests.integration import sizes
from tests.integration.sizes import Cell, Target


@pytest.fixture(scope="module")
def target(service: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """An application with two gateways on the session's Ray."""
    from ray import serve

    from services.cluster import graph

    folder = tmp_path_factory.mktemp("sizes")
    ports = {"port": free_port(), "grpc_port": free_port()}
    (folder / "service.toml").write_text(sizes.SETTINGS.format(**ports, gateways=2))
    app = graph.application(load(folder / "service.toml", {}), str(folder / "metrics"))
    (folder / "metrics").mkdir()
    serve.run(app, name="sizes", route_prefix="/sizes")
    url = f"http://127.0.0.1:{ports['port']}"
    with SynodClient(url) as client:
        client.wait_ready(120)
    yield Target(url, f"grpc://127.0.0.1:{ports['grpc_port']}")
    serve.delete("sizes")


def test_the_pairwise_subset_covers_every_pair() -> None:
    everything = set().union(*map(sizes.pairs_of, sizes.MATRIX))
    assert set().union(*map(sizes.pairs_of, sizes.pairwise())) == everything
    assert len(everything) == 7 * 2 + 7 * 5 + 7 * 2 + 2 * 5 + 2 * 2 + 5 * 2
    assert len(sizes.pairwise()) <= 40 < len(sizes.MATRIX) == 140


@pytest.mark.parametrize("cell", sizes.cells("up"), ids=str)
def test_any_request_within_the_limits_is_scored(target: Target, cell: Cell) -> None:
    found = sizes.ask(cell, target)
    for name, values in found.items():
        assert values == pytest.approx(sizes.expected(cell.size, name), abs=1e-9)


def test_responses_over_four_mib_arrive(target: Target) -> None:
    """Above gRPC's default message limit; the items themselves are small, so both ways use gRPC messages."""
    items = tuple(ScoreItem(np.full((8, 8, 3), i, np.uint8)) for i in range(200))
    with SynodClient(target.url, timeout_s=120) as client:
        results = client.score(ScoreRequest(items, ("verbose",))).results
    for i, one in enumerate(results):
        outcome = one.scores["verbose"]
        assert isinstance(outcome, Score), outcome
        assert outcome.value == pytest.approx(i / 255)
        assert len(outcome.detail["text"]) == 32768


def test_several_large_requests_at_once_share_the_store(target: Target) -> None:
    """Four requests of 100 MB in an object store of 128 MiB."""
    cell = Cell("msgpack", 2, "32 x 1024", "up")
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: sizes.ask(cell, target), range(4)))
    for found in answers:
        for name in sizes.NAMES:
            assert found[name] == pytest.approx(sizes.expected(cell.size, name), abs=1e-9)


def test_an_oversized_item_is_refused_and_a_call_is_split(target: Target) -> None:
    with SynodClient(target.url, timeout_s=120) as client:
        most = httpx.get(f"{target.url}/v1/scorers").json()["limits"]["max_request_pixels"]
        assert most == 2**25  # derived from the session's object store of 128 MiB
        file = sizes.images(1, 4096)[0]
        exact = (ScoreItem(file),) * 2
        scored = client.score(ScoreRequest(exact, ("even",)))
        assert all(isinstance(one.scores["even"], Score) for one in scored.results)
        over = ScoreItem(file, references=(file,) * 16)
        with pytest.raises(PayloadTooLarge, match=rf"{17 * 4096**2} pixels.*limit is {most} .*max_request_pixels"):
            client.score(ScoreRequest((over,), ("even",)))
        split = client.score(ScoreRequest((*exact, ScoreItem(sizes.images(1, 1400)[0])), ("even",)))
        assert all(isinstance(one.scores["even"], Score) for one in split.results)
