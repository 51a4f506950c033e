"""Requests of realistic size over every transport: the matrix, its pairwise subset, the calls.

`make test` runs the pairwise subset, `make test-full` the whole matrix.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import numpy as np
from PIL import Image

from synod.adapters import trl, verl
from synod.client import SynodClient
from synod.codec import CODECS, JSON
from synod.contracts import ImageRef, Score, ScoredItem, ScoreItem, ScoreRequest
from tests.integration.size_scorers import value_of

TRANSPORTS: Final = ("json", "msgpack", "grpc", "ndjson", "digest", "trl", "verl")
SIZES: Final = {  # items, side in pixels, references of 512 px
    "1 x 1400": (1, 1400, 0),
    "8 x 512": (8, 512, 0),
    "32 x 1024": (32, 1024, 0),
    "1 x 4096": (1, 4096, 0),
    "16 references": (1, 512, 16),
}
SERVICES: Final = ("up", "deployed")
NAMES: Final = ("even", "odd")
HERE: Final = Path(__file__).parent
SETTINGS: Final = """
[server]
port = {port}
grpc_port = {grpc_port}
gateway_replicas = {gateways}
[store]
max_scores = 0
[scorers.even]
kind = "custom"
load = "tests.integration.size_scorers:load"
needs = ["image"]
options = {{ parity = 0 }}
serving = {{ num_cpus = 0.05 }}
[scorers.odd]
kind = "custom"
load = "tests.integration.size_scorers:load"
needs = ["image"]
options = {{ parity = 1 }}
serving = {{ num_cpus = 0.05 }}
[scorers.verbose]
kind = "custom"
load = "tests.integration.size_scorers:load"
needs = ["image"]
options = {{ parity = 0, detail_chars = 32768 }}
serving = {{ num_cpus = 0.05 }}
[ensembles.both]
weights = {{ even = 0.5, odd = 0.5 }}
"""


class Cell(NamedTuple):
    """One request of the matrix."""

    transport: str
    scorers: int
    size: str
    service: str


@dataclass(frozen=True)
class Target:
    """The addresses of a service with the scorers above."""

    url: str
    grpc: str


MATRIX: Final = tuple(Cell(*one) for one in itertools.product(TRANSPORTS, (1, 2), SIZES, SERVICES))


def pairs_of(cell: Cell) -> set[tuple[int, Any, int, Any]]:
    """Return every pair of values of two different factors."""
    return {(i, cell[i], j, cell[j]) for i, j in itertools.combinations(range(len(cell)), 2)}


@cache
def pairwise() -> tuple[Cell, ...]:
    """Return cells that cover every pair of values, chosen greedily."""
    left = set().union(*map(pairs_of, MATRIX))
    chosen = []
    while left:
        best = max(MATRIX, key=lambda cell: len(pairs_of(cell) & left))
        chosen.append(best)
        left -= pairs_of(best)
    return tuple(chosen)


def cells(service: str) -> list[Cell]:
    """Return the cells to run on one service."""
    return [cell for cell in (MATRIX if os.environ.get("SYNOD_FULL") else pairwise()) if cell.service == service]


@cache
def images(count: int, side: int, seed: int = 0) -> tuple[bytes, ...]:
    """Return files of smooth random images: every fourth below 1024 px is PNG, the others JPEG."""
    rng = np.random.default_rng((seed, count, side))
    found = []
    for i in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR)
        buffer = io.BytesIO()
        if i % 4 == 3 and side < 1024:
            image.save(buffer, "PNG", compress_level=1)
        else:
            image.save(buffer, "JPEG", quality=80)
        found.append(buffer.getvalue())
    return tuple(found)


def items_of(size: str) -> tuple[ScoreItem, ...]:
    count, side, references = SIZES[size]
    shown = images(references, 512, 1)
    return tuple(ScoreItem(image=one, prompt="a ball", references=shown) for one in images(count, side))


@cache
def expected(size: str, name: str) -> tuple[float, ...]:
    """Return the expected values, computed here from Pillow's pixels."""
    return tuple(value_of(list(map(_pixels, (*i.references, i.image))), NAMES.index(name)) for i in items_of(size))


def ask(cell: Cell, target: Target) -> dict[str, list[float]]:
    """Return each scorer's values in item order; every item must have one."""
    items, names = items_of(cell.size), NAMES[: cell.scorers]
    if cell.transport in ("trl", "verl"):
        return {name: _adapted(cell.transport, items, target, name) for name in names}
    request = ScoreRequest(items, names, request_id="sizes", timeout_ms=120_000)
    if cell.transport in CODECS_OF:
        codec = CODECS[CODECS_OF[cell.transport]]
        body = codec.encode_request(request)
        answer = httpx.post(
            f"{target.url}/v1/score", content=body, headers={"content-type": codec.content_type}, timeout=120
        )
        assert answer.status_code == 200, answer.text
        return _values(codec.decode_response(answer.content).results, names)
    if cell.transport == "ndjson":
        with httpx.stream(
            "POST",
            f"{target.url}/v1/score",
            content=JSON.encode_request(request),
            headers={"content-type": "application/json", "accept": "application/x-ndjson"},
            timeout=120,
        ) as answer:
            parts = [JSON.decode_part(line.encode()) for line in answer.iter_lines()]
        found = {(p.scorer, p.index): p.outcome for p in parts if isinstance(p, ScoredItem)}
        return {name: [_value(found[name, i]) for i in range(len(items))] for name in names}
    with SynodClient(target.grpc if cell.transport == "grpc" else target.url, timeout_s=120) as client:
        if cell.transport == "digest":
            wanted = list(dict.fromkeys(file for item in items for file in (item.image, *item.references)))
            digests = dict(zip(wanted, client.put_images(wanted), strict=True))
            request = replace(request, items=tuple(_named(item, digests) for item in items))
        return _values(client.score(request).results, names)


CODECS_OF: Final = {"json": "application/json", "msgpack": "application/msgpack"}


def _adapted(adapter: str, items: Sequence[ScoreItem], target: Target, name: str) -> list[float]:
    """Score through the adapters: PIL images for trl, arrays and one sample a call for verl."""
    shown = [[Image.open(io.BytesIO(r)).convert("RGB") for r in item.references] for item in items]
    pil = [Image.open(io.BytesIO(item.image)).convert("RGB") for item in items]

    async def by_trl() -> list[Any]:
        reward = trl.reward_function(target.url, name, timeout_s=120)
        try:
            return await reward(["a ball"] * len(items), [""] * len(items), image=pil, references=shown)
        finally:
            await reward.close()

    async def by_verl() -> list[Any]:
        extra = [{"prompt": "a ball", "references": [np.asarray(r) for r in one]} for one in shown]
        calls = [
            verl.compute_score(
                "d", "", None, {**e, "image": np.asarray(p)}, url=target.url, scorer=name, timeout_s=120.0
            )
            for p, e in zip(pil, extra, strict=True)
        ]
        try:
            return [one["score"] for one in await asyncio.gather(*calls)]
        finally:
            await verl.connection(target.url, 120.0).close()

    return asyncio.run(by_trl() if adapter == "trl" else by_verl())


def _named(item: ScoreItem, digests: dict[Any, str]) -> ScoreItem:
    shown = tuple(ImageRef(digests[one]) for one in item.references)
    return replace(item, image=ImageRef(digests[item.image]), references=shown)


def _values(results: Sequence[Any], names: Sequence[str]) -> dict[str, list[float]]:
    return {name: [_value(one.scores[name]) for one in results] for name in names}


def _value(outcome: Any) -> float:
    assert isinstance(outcome, Score), outcome
    return outcome.value


def _pixels(file: Any) -> Any:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
