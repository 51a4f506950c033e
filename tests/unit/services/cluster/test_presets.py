"""The shipped settings: what they name is what the papers name, and what they put on one card fits on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_scorers
from services import settings, verify, warm
from services.settings import Settings

CONFIGS = Path(__file__).parents[4] / "deploy/configs"
PUBLIC = {
    "nghuyong/ernie-2.0-base-en",
    "Salesforce/blip2-itm-vit-g",
    "facebook/dinov2-base",
    "20180402-114759-vggface2.pt",
    "facebook/mask2former-swin-small-coco-instance",
    "ViT-L-14-quickgelu",
}
CARD_BYTES = 24 * 10**9
MODELS_OF = {"geneval": ("geneval_detector", "geneval_colour")}  # kind -> models of the benchmark, else its own name
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def preset(name: str) -> Settings:
    return settings.load(CONFIGS / f"{name}.toml", {})


@pytest.mark.parametrize("name", ["sync_r1", "one_gpu"])
def test_models_scorers_weights_and_pairs(name: str) -> None:
    loaded = preset(name)
    assert {one.source for one in warm.models(loaded.scorers)} == PUBLIC
    assert list(loaded.scorers) == [one.kind for one in loaded.scorers.values()]
    assert loaded.scorers.keys() == {"tier", "ber", "der", "fer", "geneval"}
    assert loaded.ensembles == preset("sync_r1_paper").ensembles, "eq. 34"
    assert loaded.pairs is not None
    asked = {scorer for pair in verify.load(Path(loaded.pairs)) for scorer in pair.scorers}
    assert loaded.scorers.keys() <= asked


@pytest.mark.parametrize(("name", "replicas"), [("sync_r1", 5), ("one_gpu", 1)])
def test_it_fits_on_one_gpu(name: str, replicas: int) -> None:
    from services.cluster import graph

    demand = graph.Demand.of(preset(name))
    assert len(demand.gpus) == replicas
    graph.check_capacity(demand, 8, [1])


def test_one_card_of_24_gb_holds_the_weights_and_leaves_most_of_it_to_batches() -> None:
    """Parameters of the full-size models, counted on the meta device, in the dtype of the settings."""
    loaded = preset("one_gpu")
    sizes: dict[str, int] = {}
    for name, one in loaded.scorers.items():
        parts: Any = MODELS_OF.get(one.kind, (one.kind,))
        sizes[name] = BYTES[one.serving.dtype] * sum(map(gpu_scorers.parameters, parts))
    assert 3.5e9 < sum(sizes.values()) < 4.0e9, sizes
    assert sum(sizes.values()) < CARD_BYTES / 4
