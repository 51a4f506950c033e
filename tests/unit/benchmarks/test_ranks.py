"""The parts of the benchmark of ranks that need no second process."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from benchmarks import ranks
from benchmarks.sizing.model import Screen, Work, mean_previews
from synod.contracts import ScoreItem
from trainer.types import RewardSpec

WORK = Work(preview_s=0.1, finish_s=1.0, update_s=2.0, record_s=0.25, step_s=0.5)


def measured(steps: dict[int, float], previews: list[list[int]]) -> dict[str, Any]:
    """What `cost` returns for these seconds of a step by world: 4 MB in .01 s, documents in 1 ms."""
    return {
        "settings": {"groups": 2, "trained": 10**6},
        "world_1": {"step_s": steps[1], "previews": previews, "work": asdict(WORK)},
        "world_2": {"step_s": steps[2], "previews": previews},
        "two_independent": {"times_slower": 1.5},
        "messages_alone": {"gradient_bytes": 4 * 10**6, "gradient_s": 0.01, "document_s": 0.001},
    }


def test_predictions_by_hand() -> None:
    """Two groups a step, whose longer one the other rank waits for: of 24 previews, then of 36."""
    rest = 2 * (1.0 + 2.0 + 0.25) + 0.5
    one = (12 + 24 + 24 + 36) / 2 * 0.1 + rest
    messages = 0.01 + 12 * 0.001 + 2 * 0.0005  # the sum, twelve documents, and two latencies of the sum's message
    two = (24 + 36) / 2 * 0.1 + 1.0 + 2.0 + 0.25 + 0.5 + messages
    found = ranks.validation(measured({1: one, 2: 2 * two}, [[12, 24], [24, 36]]))
    assert found["network"]["node_gb_s"] == pytest.approx(0.4)
    assert found["world_1"]["drawn"] == {"step_s": pytest.approx(one, abs=1e-3), "error": pytest.approx(0, abs=1e-3)}
    assert found["world_2"]["drawn"] == {"step_s": pytest.approx(two, abs=1e-3), "error": -0.5}
    assert found["world_2"]["contended"]["step_s"] == pytest.approx(1.5 * (two - messages) + messages, abs=1e-3)
    expected = 2 * 0.1 * mean_previews(ranks.SCREEN) + rest
    assert found["world_1"]["expected"]["step_s"] == pytest.approx(expected, abs=1e-3)
    assert set(found["world_1"]) == {"measured_s", "expected", "drawn"}


def test_shares_by_hand() -> None:
    sums = {"gradients": {"count": 1, "bytes": 2e6, "seconds": 0.5}}
    steps = [ranks.Step(4.0, 1.0, [12], sums), ranks.Step(6.0, 0.0, [12], sums)]
    (found,) = ranks._shares([steps])
    row = {"messages_a_step": 1, "bytes_a_step": 2e6, "seconds_a_step": 0.5, "share": 0.1, "mb_s": 4.0}
    assert found == {"share_waiting": 0.1, "gradients": row}


def test_messages_are_counted_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(ranks.time, "perf_counter", itertools.count().__next__)
    monkeypatch.setattr(dist, "barrier", lambda: order.append("barrier"))
    monkeypatch.setattr(dist, "all_reduce", lambda message: order.append("all_reduce"))
    monkeypatch.setattr(dist, "all_gather", lambda parts, message: order.append("all_gather"))
    recorder = ranks._Recorder()
    with recorder.recording():
        dist.all_reduce(torch.zeros(10))
        dist.all_gather([torch.zeros(3), torch.zeros(3)], torch.zeros(3))
    dist.all_reduce(torch.zeros(10))
    assert order == ["barrier", "all_reduce", "barrier", "all_gather", "all_reduce"]
    assert {kind: (of["count"], of["bytes"]) for kind, of in recorder._messages.items()} == {
        "gradients": (1, 40),
        "documents": (1, 24),
    }
    assert recorder._waiting == 2  # a tick at each barrier
    assert [of["seconds"] for of in recorder._messages.values()] == [1, 1]


def test_scores_follow_from_pixels_and_pass_at_the_rate() -> None:
    rng = np.random.default_rng(0)
    items = [ScoreItem(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), "a dog") for _ in range(2000)]
    service = ranks.PixelRewards()
    scores = [reward.value for reward in service.submit_previews(items).result()]
    assert scores == [reward.value for reward in service.submit_previews(items).result()]
    assert scores != [reward.value for reward in service.submit(items, RewardSpec({"x": 1.0})).result()]
    threshold = ranks.FixedThreshold().initial_state().threshold
    assert np.mean([score > threshold for score in scores]) == pytest.approx(ranks.SCREEN.pass_rate, abs=0.04)


def test_the_screen_of_the_runs_is_that_of_the_model(tmp_path: Any) -> None:
    settings = ranks._settings(tmp_path, {"STEPS": 2, "PROMPTS_PER_STEP": 4})
    limits = settings.screen
    assert Screen(limits.group_size, limits.preview_batch_size, limits.max_previews, 0.4) == ranks.SCREEN
    assert (settings.steps, settings.prompts_per_step) == (2, 4)
