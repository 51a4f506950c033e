"""The least possible wait of a step, by hand."""

from __future__ import annotations

import pytest

from benchmarks.reward_wait import least_wait_s, summary

STEP = {"reason": 0.5, "preview": 2.0, "decode": 0.5, "finish": 2.0, "update": 5.0}


@pytest.mark.parametrize(
    ("batches", "latency_s", "least"),
    [
        ([3], 2.0, 4.0),  # 3 s of drawing, 2 s for the last scores, 2 s of finishing, 2 s for the rewards
        ([1, 2], 2.0, 2.0),  # the longer group: 2 + 2 + 1 s, in which the other is drawn and finished
        ([1, 2], 3.0, 4.0),
        ([1, 1, 1, 1], 0.5, 0.5),
    ],
)
def test_least_wait_by_hand(batches: list[int], latency_s: float, least: float) -> None:
    assert least_wait_s(batches, STEP, latency_s) == pytest.approx(least)


def test_shares_are_of_the_whole_step() -> None:
    """One step of 10 s of work and 6 s of waits, of which 4 s were needed; the other waits for nothing but rewards."""
    steps = [{**STEP, "surrogate": 3.0, "reward_wait": 3.0, "total": 16.0}, {**STEP, "reward_wait": 2.0, "total": 12.0}]
    found = summary(steps, [[3], [3]], 2.0)
    assert (found["seconds"], found["surrogate_s"], found["reward_wait_s"]) == (14.0, 1.5, 2.5)
    assert found["share"] == pytest.approx(4 / 14, abs=1e-4)
    assert (found["least_wait_s"], found["batches"]) == (4.0, 3.0)
    assert found["least_share"] == pytest.approx(4 / 14, abs=1e-4)
