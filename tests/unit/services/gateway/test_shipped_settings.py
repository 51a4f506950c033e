"""Every shipped TOML scores a plain prompt: an item without a concept kind. The models are fakes; all else is real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from services import settings
from services.backends import LocalBackend
from services.gateway.core import Gateway
from services.scorers import registry
from services.scorers.base import ScorerSpec
from synod.contracts import (
    Concept,
    GenEvalClause,
    GenEvalMetadata,
    Outcome,
    Reasoning,
    Score,
    ScoreFailure,
    ScoreItem,
    ScoreRequest,
)

CONFIGS = sorted((Path(__file__).parents[4] / "deploy/configs").glob("*.toml"))
BLACK = np.zeros((8, 8, 3), np.uint8)
PLAIN = ScoreItem(BLACK, "a photo of a dog", geneval=GenEvalMetadata("single_object", (GenEvalClause("dog", 1),)))
WITHOUT = "_without_tier"
SYNC_R1_VALUES = {"tier": 0.5, "ber": -0.25, "der": 0.75, "fer": 1.0}


@dataclass
class Fixed:
    """A scorer with the spec of a shipped one, which scores every item equally."""

    spec: ScorerSpec
    value: float

    def score(self, items: Sequence[ScoreItem]) -> Sequence[Outcome]:
        return [Score(self.value)] * len(items)


def serving(loaded: settings.Settings, values: dict[str, float]) -> Gateway:
    specs = {name: registry.spec(name, scorer) for name, scorer in loaded.scorers.items()}
    backend = LocalBackend({name: Fixed(spec, values.get(name, -0.5)) for name, spec in specs.items()})
    return Gateway(backend, loaded.ensembles, loaded.limits)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
async def test_a_plain_prompt_is_scored(path: Path) -> None:
    loaded = settings.load(path, {})
    gateway = serving(loaded, {})
    asked = tuple(
        name for name in loaded.scorers if {*gateway.backend.specs[name].needs} <= {"image", "prompt", "geneval"}
    )
    assert asked
    (result,) = (await gateway.score(ScoreRequest((PLAIN,), asked))).results
    assert result.scores == {name: Score(-0.5) for name in asked}
    for name, ensemble in loaded.ensembles.items():
        (result,) = (await gateway.score(ScoreRequest((PLAIN,), (), name))).results
        if ensemble.weights is None:
            assert name.startswith("sync_r1"), "eq. 34 rewards concepts alone"
            assert isinstance(result.reward, ScoreFailure)
            assert "concept kinds animal, object, person only" in result.reward.message
        elif "tier" in ensemble.weights:
            assert isinstance(result.reward, ScoreFailure), "there is no answer"
        else:
            assert isinstance(result.reward, Score), result
            assert result.reward.value == -0.5 * sum(ensemble.weights.values()), "a negative value is not clipped"


@pytest.mark.parametrize("path", [p for p in CONFIGS if "[ensembles.sync_r1" in p.read_text()], ids=lambda p: p.stem)
@pytest.mark.parametrize(
    ("kind", "reward"),
    [
        ("person", 0.4 * 0.5 + 0.2 * 0.75 + 0.2 * 1.0),
        ("animal", 0.4 * 0.5 + 0.3 * 0.75),
        ("object", 0.4 * 0.5 + 0.3 * 0.75),
    ],
)
async def test_sync_r1_is_eq_34(path: Path, kind: str, reward: float) -> None:
    item = ScoreItem(BLACK, "a <bo>", (BLACK,), Reasoning("a dog", ("a dog",), (1.0,)), concept=Concept(kind))  # type: ignore[arg-type]
    gateway = serving(settings.load(path, {}), SYNC_R1_VALUES)
    (result,) = (await gateway.score(ScoreRequest((item,), (), "sync_r1"))).results
    assert isinstance(result.reward, Score)
    assert result.reward.value == pytest.approx(reward, abs=1e-12)
    bare = replace(item, reasoning=None)
    results = [(await gateway.score(ScoreRequest((bare,), (), f"sync_r1{one}"))).results[0] for one in ("", WITHOUT)]
    assert isinstance(results[0].reward, ScoreFailure), "an ensemble with TIER needs an answer"
    assert isinstance(results[1].reward, Score)
    assert results[1].reward.value == pytest.approx(reward - 0.4 * 0.5, abs=1e-12)
