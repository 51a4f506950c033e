"""Several scorers in one process: common models, but queues, batches and verdicts of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.scorers import registry
from services.scorers.base import Scorer, ScorerSpec
from services.scorers.der import DerSettings
from services.settings_types import ScorerSettings, ServingSettings
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import Overloaded

SPEC = ScorerSpec("", ("prompt",), 0.0, 9.0, "a test", "a test")


class Batch:
    """The size of the batch that an item came in, or what its prompt makes it raise."""

    def __init__(self, name: str) -> None:
        self.spec = replace(SPEC, name=name)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        if any(item.prompt == "poison" for item in items):
            raise ValueError("poisoned")
        return [Score(float(len(items)))] * len(items)


def build(name: str, settings: ScorerSettings) -> Scorer:
    return Batch(name)


@pytest.fixture(autouse=True)
def _short_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.cluster.replica.MAX_QUEUED_IMAGES", 8)


def host(sizes: dict[str, int], golden: Path | None = None) -> Any:
    from services.cluster.host import Host

    settings = {
        name: DerSettings(kind="der", model="/tmp", serving=ServingSettings(max_batch_images=n))
        for name, n in sizes.items()
    }
    specs = {name: replace(SPEC, name=name) for name in sizes}
    return Host(specs, settings, golden and str(golden), build)


async def test_each_scorer_forms_batches_of_its_own() -> None:
    subject = host({"one": 2, "other": 8})
    items = (ScoreItem(prompt="a"),) * 6
    calls = (subject.score(name, items, range(6), 10.0) for name in ("one", "other"))
    values = [[outcome.value for outcome in outcomes] for outcomes in await asyncio.gather(*calls)]
    assert values == [[2.0] * 6, [6.0] * 6]


async def test_a_full_queue_and_a_poison_are_one_scorers_own() -> None:
    subject = host({"one": 2, "other": 8})
    good, poison = (ScoreItem(prompt="a"),), (ScoreItem(prompt="poison"),)
    full = asyncio.create_task(subject.score("one", poison * 8, range(8), 10.0))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await subject.score("one", good, [0], 10.0)
    assert [o.value for o in await subject.score("other", good, [0], 10.0)] == [1.0]
    assert all(isinstance(outcome, ScoreFailure) for outcome in await full)


async def test_one_bad_verdict_is_the_processs(tmp_path: Path) -> None:
    golden = tmp_path / "golden.json"
    golden.write_text('[{"item": {"prompt": "a"}, "scores": {"one": 1.0, "other": 2.0}}]')
    with pytest.raises(RuntimeError, match=r"scorer 'other' is not the recorded one: .* recorded is 2"):
        await host({"one": 2, "other": 2}, golden).check_health()
    golden.write_text('[{"item": {"prompt": "a"}, "scores": {"one": 1.0, "other": 1.0}}]')
    await host({"one": 2, "other": 2}, golden).check_health()


async def test_scorers_of_one_model_share_its_weights(tiny_models: Any) -> None:
    from services.cluster.host import Host

    settings = {name: DerSettings(kind="der", model=tiny_models.dinov2) for name in ("one", "other")}
    specs = {name: registry.spec(name, one) for name, one in settings.items()}
    replicas = Host(specs, settings, None, registry.build)._replicas
    loaded = {name: replica.loaded for name, replica in replicas.items()}
    assert loaded["one"].parameter_bytes == loaded["other"].parameter_bytes > 10_000
    assert (loaded["other"].device, loaded["other"].dtype) == ("cpu", "float32")
    assert 0 < loaded["other"].load_s < 600
    first, second = (replicas[name]._scorer._embed for name in ("one", "other"))  # type: ignore[attr-defined]
    assert first == second  # the method of one model
