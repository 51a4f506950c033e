"""Test the shipped settings: the same models and rewards in both forms, which fit on one GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_scorers
from services import settings, warm
from services.settings import Settings
from synod.scoring import pairs

CONFIGS = Path(__file__).parents[4] / "deploy/configs"
CARD_BYTES = 24 * 10**9
MODELS_OF = {"geneval": ("geneval_detector", "geneval_colour")}  # kind -> models of the benchmark, else its own name
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def preset(name: str) -> Settings:
    return settings.load(CONFIGS / f"{name}.toml", {})


def test_one_gpu_serves_the_models_and_rewards_of_sync_r1() -> None:
    split, shared, paper = preset("sync_r1"), preset("one_gpu"), preset("sync_r1_paper")
    sources = [{model.source for model in warm.models_of(one.scorers)} for one in (split, shared)]
    assert sources[0] == sources[1]
    assert split.ensembles == shared.ensembles
    assert {name: split.ensembles[name] for name in paper.ensembles} == paper.ensembles
    for loaded in (split, shared):
        assert loaded.pairs is not None
        covered = {scorer for pair in pairs.load(Path(loaded.pairs)) for scorer in pair.scorers}
        assert loaded.scorers.keys() <= covered


@pytest.mark.parametrize(("name", "replicas"), [("sync_r1", 5), ("one_gpu", 1)])
def test_it_fits_on_one_gpu(name: str, replicas: int) -> None:
    from services.cluster import graph

    demand = graph.Demand.of(preset(name))
    assert len(demand.gpus) == replicas
    graph.check_capacity(demand, 8, [1])


def test_weights_leave_most_of_a_24_gb_gpu_to_batches() -> None:
    """Parameters of the full-size models, counted on the meta device, in the dtype of the settings."""
    loaded = preset("one_gpu")
    sizes: dict[str, int] = {}
    for name, one in loaded.scorers.items():
        parts: Any = MODELS_OF.get(one.kind, (one.kind,))
        sizes[name] = BYTES[one.serving.dtype] * sum(map(gpu_scorers.parameters, parts))
    assert 3.5e9 < sum(sizes.values()) < 4.0e9, sizes
    assert sum(sizes.values()) < CARD_BYTES / 4
