"""The recipes differ in selection alone, and the control permutes within groups."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from benchmarks.arms import ARMS, Arm, Permuted, merged, settings_of
from synod.contracts import Reasoning, ScoreItem
from synod.errors import SettingsError
from trainer.checkpoint import fingerprint
from trainer.rewards.terms import Items, submit_terms
from trainer.settings import ScreenSettings
from trainer.types import Reward, RewardSpec

ROOT = Path(__file__).parents[3]
EMBEDDED = ROOT / "deploy/configs/embedded.toml"
SPEC = RewardSpec({"geneval": 1.0})


class Ordinals:
    """Rewards every item by its place in the request."""

    def submit_previews(self, items: Sequence[ScoreItem], reward: RewardSpec | None = None) -> Future[list[Reward]]:
        return self.submit(items, SPEC)

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        future: Future[list[Reward]] = Future()
        future.set_result([Reward(float(place), {"der": float(place)}) for place in range(len(items))])
        return future


def items(seed: int, count: int = 9) -> list[ScoreItem]:
    drawn = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [ScoreItem(image) for image in drawn]


@pytest.mark.parametrize("name", sorted(ARMS))
def test_only_selection_differs(name: str, tmp_path: Path) -> None:
    """Everything else is that of plain_9; only today's recipe has another sampler, credit and other decisions."""
    one, plain = (
        fingerprint(settings_of(arm, EMBEDDED, tmp_path, seed=1, prompts=8, permuted=ARMS[arm].permuted))
        for arm in (name, "plain_9")
    )
    different = {key for key in one if one[key] != plain[key]}
    selection = {key for key in one if key.startswith("screen.")} | {"rewards.surrogate", "loss.baseline"}
    today = {"policy.positions", "policy.sampler.confidence", "policy.sampler.schedule", "loss.credit"}
    also = {"today": {*today, "loss.image.alpha"}, "permuted": {"reward_batch_size"}}
    assert different - selection <= also.get(name, set())
    assert (one["policy.positions"], one["loss.credit"]) == (
        ("masked", "total") if name == "today" else ("committed", "split")
    )


def test_environment_changes_what_no_recipe_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNOD__TRAINER__OPTIMIZER__LR", "3e-4")
    monkeypatch.setenv("SYNOD__TRAINER__SCREEN__GROUP_SIZE", "5")
    monkeypatch.setenv("SYNOD__TRAINER__SCREEN__SELECT", "first_above")
    monkeypatch.setenv("SYNOD__TRAINER__SCREEN__MAX_PREVIEWS", "77")
    found = settings_of("plain_14", EMBEDDED, tmp_path, seed=2, prompts=8, url="http://host:1")
    assert (found.optimizer.lr, found.screen.group_size, found.seed) == (3e-4, 14, 2)
    assert found.screen.max_previews == ScreenSettings().max_previews
    assert (found.rewards.url, found.evaluate.prompts, found.run_dir) == ("http://host:1", 8, tmp_path)


def test_a_schedule_by_steps_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNOD__TRAINER__OPTIMIZER__SCHEDULE", "cosine")
    with pytest.raises(SettingsError, match="'cosine', which needs a number of steps"):
        settings_of("plain_9", EMBEDDED, tmp_path, seed=0, prompts=8)


def test_a_recipe_that_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.arms.ARMS", {"plain_9": Arm("", {"group_size": 1})})
    with pytest.raises(SettingsError, match="recipe 'plain_9' does not fit"):
        settings_of("plain_9", EMBEDDED, tmp_path, seed=0, prompts=8)


def test_merged_trees_keep_what_is_not_named() -> None:
    first = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merged(first, {"a": {"c": None}}, {"e": {"f": 4}}) == {"a": {"b": 1, "c": None}, "d": 3, "e": {"f": 4}}
    assert first == {"a": {"b": 1, "c": 2}, "d": 3}


def test_rewards_are_permuted_within_a_request() -> None:
    orders = []
    for seed in range(20):
        rewards = Permuted(Ordinals(), 0).submit(items(seed), SPEC).result()
        assert [reward.components["der"] for reward in rewards] == [reward.value for reward in rewards]
        orders.append([reward.value for reward in rewards])
        assert sorted(orders[-1]) == list(range(9))
    assert len({tuple(order) for order in orders}) == 20
    assert abs(np.mean([np.corrcoef(order, range(9))[0, 1] for order in orders])) < 0.25  # 20 have s.e. .08


def test_the_order_follows_from_the_images() -> None:
    def order(seed: int, images: int) -> list[float | None]:
        service = Permuted(Ordinals(), seed)
        service.submit(items(99), SPEC)  # what was submitted before changes nothing
        return [reward.value for reward in service.submit(items(images), SPEC).result()]

    assert order(0, 1) == [r.value for r in Permuted(Ordinals(), 0).submit(items(1), SPEC).result()]
    assert order(1, 1) != order(0, 1)
    assert order(0, 2) != order(0, 1)


def test_answers_are_permuted_and_terms_of_two_results_arrive() -> None:
    def answered(said: str) -> list[ScoreItem]:
        return [ScoreItem(reasoning=Reasoning(f"{said} {i}", (), ())) for i in range(9)]

    orders = [[r.value for r in Permuted(Ordinals(), 0).submit(answered(said), SPEC).result()] for said in ("a", "b")]
    assert orders[0] != orders[1]
    assert sorted(filter(None, orders[0])) == list(range(1, 9))
    spec = RewardSpec({"geneval": 1.0, "format": 1.0}, of={"format": "answer"})
    both: list[Items] = [
        {"image": image, "answer": answer} for image, answer in zip(items(3), answered("a"), strict=True)
    ]
    found = submit_terms(Permuted(Ordinals(), 0), both, spec).result(timeout=10)
    images = [r.value for r in Permuted(Ordinals(), 0).submit(items(3), SPEC).result()]
    assert [r.value for r in found] == [(a or 0) + (b or 0) for a, b in zip(images, orders[0], strict=True)]


def test_surrogate_scores_are_not_permuted() -> None:
    found = Permuted(Ordinals(), 0).submit_previews(items(0)).result()
    assert [reward.value for reward in found] == list(range(9))
