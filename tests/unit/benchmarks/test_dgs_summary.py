"""The arithmetic of equal-time comparisons, by hand and against second formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.dgs_summary import against, jackknife, mean_curve, summary, table, time_to
from benchmarks.measures import PRIMARY
from synod.errors import SettingsError

GRID = [5.0, 10.0]


def run(seed: int, *gains: float, minutes: tuple[float, ...] = (5.0, 10.0), stderr: float = 0.01) -> dict[str, Any]:
    """A finished run with a curve of gains at `minutes`."""
    change = {"difference": gains[-1], "stderr": stderr, "stderr_by_prompt": stderr / 2, "n": 100}
    return {
        "seed": seed,
        "steps": 40,
        "minutes": minutes[-1],
        "heldout": {PRIMARY: change},
        "curve": [{"minutes": at, "gain": {PRIMARY: gain}} for at, gain in zip(minutes, gains, strict=True)],
        "facts": {"marks_s": [300.0, 600.0], "evaluate.prompts": 100, "weights": "w"},
    }


@pytest.mark.parametrize(
    ("level", "minutes"),
    [
        (0.0, 0.0),
        (0.01, 2.5),  # half of the way to the first mark
        (0.02, 5.0),
        (0.03, 10.0),  # the curve falls to .01 first: then (10 - 5) / .02 minutes for each .01, from .01 at 7.5
        (0.031, None),
    ],
)
def test_time_to_a_gain_by_hand(level: float, minutes: float | None) -> None:
    assert time_to([(0.0, 0.0), (5.0, 0.02), (7.5, 0.01), (10.0, 0.03)], level) == pytest.approx(minutes)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=6), st.integers(-5, 5).map(lambda n: n + 0.5))
def test_time_to_a_gain_agrees_with_a_fine_grid(gains: list[int], level: float) -> None:
    points = [(0.0, 0.0), *((float(i + 1), float(gain)) for i, gain in enumerate(gains))]
    fine = np.linspace(0, len(gains), 1000 * len(gains) + 1)
    above = np.flatnonzero(np.interp(fine, *zip(*points, strict=True)) >= level)
    found = time_to(points, level)
    assert (found is None) == (len(above) == 0)
    if found is not None:
        assert found == pytest.approx(fine[above[0]], abs=1.1e-3)


def test_curves_are_averaged_at_the_marks() -> None:
    """The second run passed its marks late: 3 at 6 minutes is 2.5 at 5."""
    found = mean_curve([[(0.0, 0.0), (5.0, 1.0), (10.0, 2.0)], [(0.0, 0.0), (6.0, 3.0), (11.0, 4.0)]], GRID)
    assert found == [(0.0, 0.0), (5.0, pytest.approx((1 + 2.5) / 2)), (10.0, pytest.approx((2 + 3.8) / 2))]


@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=8))
def test_jackknife_of_a_mean_is_its_standard_error(values: list[float]) -> None:
    without = [np.mean([v for j, v in enumerate(values) if j != i]) for i in range(len(values))]
    expected = np.std(values, ddof=1) / math.sqrt(len(values))
    assert jackknife([float(one) for one in without]) == pytest.approx(expected, abs=1e-9)


def test_speed_is_the_ratio_of_times_to_one_gain() -> None:
    """The reference gains .02 and .04; the other .04 already at 5 minutes: twice as fast, with both seeds."""
    reference, other = [run(0, 0.02, 0.04), run(1, 0.02, 0.04)], [run(0, 0.04, 0.05), run(1, 0.04, 0.05)]
    found = against(reference, other, PRIMARY, GRID)
    assert found == {
        "seeds": [0, 1],
        "difference": pytest.approx(0.01),
        "difference_stderr": pytest.approx(0.0, abs=1e-12),
        "difference_interval": [pytest.approx(0.01)] * 2,
        "target": pytest.approx(0.04),
        "minutes": pytest.approx(5.0),
        "speed": pytest.approx(2.0),
        "speed_stderr": pytest.approx(0.0, abs=1e-12),
        "speed_interval": [pytest.approx(2.0)] * 2,
    }


def test_speed_over_seeds_has_a_jackknife_error() -> None:
    """Of the other recipe seed 0 reaches .04 at 5 minutes and seed 1 at 10; each left out leaves speeds 1 and 2."""
    reference, other = [run(0, 0.02, 0.04), run(1, 0.02, 0.04)], [run(0, 0.04, 0.04), run(1, 0.02, 0.04)]
    found = against(reference, other, PRIMARY, GRID)
    assert found["speed"] == pytest.approx(1.0)  # the mean curve reaches .04 at 10 minutes: .03 at 5
    assert found["speed_stderr"] == pytest.approx(0.5)  # sqrt(1/2 ((1 - 1.5)^2 + (2 - 1.5)^2))
    assert found["speed_interval"] == pytest.approx([1 - 12.706 * 0.5, 1 + 12.706 * 0.5], abs=1e-3)  # t of 1 freedom


def test_gains_differ_seed_by_seed() -> None:
    """Seed 2 has no counterpart; .01 and .03 more: .02 with an error of (.02 / sqrt 2) / sqrt 2."""
    reference, other = (
        [run(0, 0.0, 0.01), run(1, 0.0, 0.05)],
        [run(s, 0.0, g) for s, g in ((0, 0.02), (1, 0.08), (2, 1))],
    )
    found = against(reference, other, PRIMARY, GRID)
    assert (found["seeds"], found["difference"], found["difference_stderr"]) == (
        [0, 1],
        pytest.approx(0.02),
        pytest.approx(0.01),
    )


def test_a_gain_that_is_not_reached_has_no_time() -> None:
    found = against([run(0, 0.02, 0.04)], [run(0, 0.01, 0.03)], PRIMARY, GRID)
    assert (found["target"], found["minutes"], found["speed"]) == (pytest.approx(0.04), None, None)


@pytest.mark.parametrize("gains", [(0.04, 0.04), (0.01, 0.07)])
def test_nothing_is_timed_against_noise(gains: tuple[float, float]) -> None:
    """A gain of .04 is less than two errors of .03, be it over the images or over the seeds."""
    noisy = [run(seed, gain / 2, gain, stderr=0.03 if gain == 0.04 else 0.001) for seed, gain in enumerate(gains)]
    found = against(noisy, [run(0, 0.04, 0.08), run(1, 0.04, 0.08)], PRIMARY, GRID)
    assert (found["seeds"], found["target"], found["speed"]) == ([0, 1], None, None)


def test_figures_of_a_recipe_by_hand() -> None:
    """Gains .02 and .04: mean .03, error .02 / sqrt 2 / sqrt 2 = .01; by minute a tenth; images' error .01."""
    found = summary({"plain_9": [run(0, 0.01, 0.02), run(1, 0.01, 0.04)]})
    arm = found["arms"]["plain_9"]
    assert (found["marks"], found["prompts"], arm["seeds"], arm["steps"]) == (GRID, 100, [0, 1], 40)
    assert arm["measures"][PRIMARY] == {
        "gain": pytest.approx(0.03),
        "gain_stderr": pytest.approx(0.01),
        "images_stderr": pytest.approx(0.01),
        "per_minute": pytest.approx(0.003),
        "per_minute_stderr": pytest.approx(0.001),
        "n": 100,
    }
    assert arm["against"] == {}


def test_a_failed_run_is_named_and_left_out() -> None:
    failed = {"seed": 1, "failed": "loss is nan", "facts": run(1, 0.0, 0.0)["facts"]}
    found = summary({"plain_9": [run(0, 0.01, 0.02), failed], "extremes": [{**failed, "seed": 0}]})
    assert found["arms"]["plain_9"]["failed"] == {"1": "loss is nan"}
    assert found["arms"]["plain_9"]["seeds"] == [0]
    assert found["arms"]["extremes"]["measures"] == {}
    assert "| extremes | 0 |  | not measured |" in table(found)


@pytest.mark.parametrize(("name", "value"), [("marks_s", [600.0]), ("evaluate.prompts", 99), ("weights", "v")])
def test_runs_of_another_budget_are_refused(name: str, value: object) -> None:
    other = run(0, 0.01, 0.02)
    other["facts"] = {**other["facts"], name: value}
    with pytest.raises(SettingsError, match="cannot be compared"):
        summary({"plain_9": [run(0, 0.01, 0.02)], "extremes": [other]})


def test_table_names_speeds_and_errors() -> None:
    found = summary({"plain_9": [run(0, 0.02, 0.04)], "extremes": [run(0, 0.04, 0.05)]})
    assert "| extremes | 1 | 40 | +0.050 | +5.00 | 2.00 of plain_9 |" in table(found)
    assert table(summary({})).count("\n") == 1
