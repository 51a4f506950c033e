"""What tests of the training benchmarks share: a service whose rewards have a fixed term, and runs without a clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from benchmarks.arms import Permuted
from synod.contracts import ScoreItem
from tests.unit.trainer.reward_services import answered, brightness, redness
from trainer.types import Reward, RewardSpec

STEP_S = 60.0
FIXED = 0.1


class Killed(RuntimeError):
    """The process ends here."""


class Service:
    """Rewards brightness + FIXED; the request for rewards number `dies_at` raises Killed. Records requests' sizes."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.sizes: list[int] = []
        self._dies_at = dies_at

    def submit_previews(self, items: Sequence[ScoreItem], reward: RewardSpec | None = None) -> Future[list[Reward]]:
        return answered([Reward(FIXED if item.image is None else redness(item)) for item in items])

    def submit(self, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        if len(self.sizes) == self._dies_at:
            raise Killed
        self.sizes.append(len(items))
        geneval = bool(reward.scorers)
        return answered([_reward(brightness(item), geneval) for item in items])


def _reward(bright: float, geneval: bool) -> Reward:
    if geneval:
        return Reward(bright, {"geneval": bright}, fixed={}, official=float(bright > 0.5))
    return Reward(bright + FIXED, {"der": bright, "tier": FIXED}, fixed={"tier": FIXED})


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes STEP_S by the benchmarks' clock; a checkpoint after each; GenEval's prompts are 40 %."""

    def trained_s(record: Mapping[str, Any]) -> float:
        return STEP_S

    monkeypatch.setattr("benchmarks.timed.trained_s", trained_s)
    monkeypatch.setattr("benchmarks.learning.trained_s", trained_s)
    for module in ("dgs", "learning", "screening_table"):
        monkeypatch.setattr(f"benchmarks.{module}.commit", lambda: "0000000")  # it starts git
    monkeypatch.setenv("SYNOD__TRAINER__CHECKPOINT_EVERY", "1")
    monkeypatch.setenv("SYNOD__TRAINER__DATA__GENEVAL_SHARE", "0.4")


@pytest.fixture
def permuted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the requests whose rewards were permuted, so far."""
    sizes: list[int] = []
    submit = Permuted.submit

    def recorded(service: Permuted, items: Sequence[ScoreItem], reward: RewardSpec) -> Future[list[Reward]]:
        sizes.append(len(items))
        return submit(service, items, reward)

    monkeypatch.setattr(Permuted, "submit", recorded)
    return sizes


@pytest.fixture
def config(tiny_settings: Callable[..., Any], world_dir: Path, stepped: None) -> Path:
    """The TOML of the tiny Show-o."""
    tiny_settings()
    return world_dir / "train.toml"
